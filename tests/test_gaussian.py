"""Gaussian error against integrals written here: scipy's quadrature over cells, and its own optimiser."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from rhoc.runtime.capacity import GaussianError, gmse, monte_carlo
from rhoc.runtime.gaussian import Source
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify, Stage

from .gaussian_oracle import (
    Array,
    absmax_error,
    borders,
    dips,
    floats,
    gaussian,
    integers,
    integrated,
    kept_density,
    pruned_error,
    rounding_error,
)


def chain(*parts: Stage) -> Representation:
    return Representation(parts)


def rms(num_bits: int, grid: str = "midrise", kind: str = "int") -> Quantize:
    return Quantize(num_bits, kind, strategy="channel", observer="rms", grid=grid)  # type: ignore[arg-type]


def n_of_m(structure: str) -> Sparsify:
    return Sparsify(sparsity_structure=structure)


def stages_only(value: object) -> str:
    """Name of a test case: arrays and digits left out."""
    return str(value) if isinstance(value, (Stage, Representation)) else ""


def error(representation: Representation) -> float:
    result = gmse(representation)
    assert result.method == "quadrature"
    assert result.standard_error == 0
    return result.value


# Grids

UNIFORM = {  # bits: (outermost level of the optimum, error)
    1: (0.797884561, 0.36338023),
    2: (1.493530029, 0.11884605),
    3: (2.051068075, 0.03743966),
    4: (2.514004471, 0.01154288),
    5: (2.916151219, 3.4952114e-3),
    6: (3.277984797, 1.0400454e-3),
    7: (3.611097126, 3.0433277e-4),
    8: (3.922204766, 8.7686186e-5),
}


@pytest.mark.parametrize("num_bits", UNIFORM)
def test_uniform_grids(num_bits: int) -> None:
    alpha, published = UNIFORM[num_bits]
    r = chain(rms(num_bits))
    (bound,) = r.bound_stages
    assert isinstance(bound, Quantize)
    assert bound.clip == pytest.approx(alpha, rel=1e-7)
    assert error(r) == pytest.approx(published, rel=1e-6)
    levels = integers(num_bits, "midrise")
    best, scale = dips(levels)[0]
    assert error(r) == pytest.approx(best, rel=1e-9)
    assert bound.clip == pytest.approx(scale * levels.max(), rel=1e-6)
    assert error(r) == pytest.approx(integrated(levels * bound.clip / levels.max(), gaussian), rel=1e-9)


def test_the_digits_that_the_specs_are_held_to() -> None:
    stated = [0.36338, 0.118846, 0.0374397, 0.0115429, 3.4952e-3, 1.0400e-3, 3.0433e-4, 8.7686e-5]
    for num_bits, value in enumerate(stated, 1):
        assert error(chain(Hadamard(128), rms(num_bits))) == pytest.approx(value, rel=6e-5)
    assert error(chain(rms(4, "e2m1", "float"))) == pytest.approx(0.0126849, rel=1e-5)
    assert error(chain(Sparsify(0.5))) == pytest.approx(0.0713259, rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "levels", "published"),
    [
        (rms(2, "midtread"), integers(2, "midtread"), 0.19017404),
        (rms(4, "midtread"), integers(4, "midtread"), None),
        (rms(2, "twos"), integers(2, "twos"), None),
        (rms(4, "twos"), integers(4, "twos"), None),
        (rms(4, "e2m1", "float"), floats(2, 1), 0.012684904),
        (rms(4, "e1m2", "float"), floats(1, 2), 0.0128893859),
        (rms(4, "e3m0", "float"), floats(3, 0), 0.0377449895),
        (rms(6, "e3m2", "float"), floats(3, 2), None),
        (rms(6, "e2m3", "float"), floats(2, 3), None),
        (rms(8, "e4m3", "float"), floats(4, 3), None),  # the NaN code makes no difference to a free scale
    ],
    ids=stages_only,
)
def test_other_grids(stage: Quantize, levels: Array, published: float | None) -> None:
    best, scale = dips(levels)[0]
    assert error(chain(stage)) == pytest.approx(best, rel=1e-7)
    assert published is None or error(chain(stage)) == pytest.approx(published, rel=1e-7)
    assert error(chain(stage)) == pytest.approx(integrated(levels * scale, gaussian), rel=1e-7)
    mse = Quantize(stage.num_bits, stage.type, strategy="tensor", observer="mse", grid=stage.grid)
    assert error(chain(mse)) == pytest.approx(best, rel=1e-7), "a searched scale has the same optimum"


def test_e2m1_reaches_its_published_largest_level() -> None:
    (bound,) = chain(rms(4, "e2m1", "float")).bound_stages
    assert isinstance(bound, Quantize)
    assert bound.clip == pytest.approx(2.922475, abs=6e-7)


def test_order_of_formats() -> None:
    names = ["e2m1", "int4", "e4m1", "e3m2", "int6", "e2m3", "e4m3", "e3m4", "int8", "e2m5"]
    errors = []
    for name in names:
        if name.startswith("int"):
            errors.append(error(chain(rms(int(name[3:])))))
        else:
            errors.append(error(chain(rms(1 + int(name[1]) + int(name[3]), name, "float"))))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("stage", "rho"),
    [
        (rms(1), 0.1796),
        (rms(2), 0.4445),
        (rms(3), 0.6696),
        (rms(4), 0.8196),
        (rms(8), 0.9890),
        (rms(4, "e2m1", "float"), 0.8103),
        (rms(6, "e3m2", "float"), 0.9182),
        (rms(6, "e2m3", "float"), 0.9590),
        (rms(8, "e4m3", "float"), 0.9629),
    ],
    ids=stages_only,
)
def test_published_capacities_follow(stage: Quantize, rho: float) -> None:
    bits = gmse(chain(stage)).gaussian_bits
    assert math.tanh(0.41 * bits) ** 1.39 == pytest.approx(rho, abs=6e-5)


def test_a_given_clip_is_kept() -> None:
    quest = Quantize(8, strategy="channel", observer="rms", grid="midrise", clip=3.8849386788)
    levels = integers(8, "midrise")
    assert error(chain(quest)) == pytest.approx(8.7821e-5, rel=1e-5)
    assert error(chain(quest)) == pytest.approx(rounding_error(levels * 3.8849386788 / 127.5), rel=1e-9)


# Sparsity

SPARSITY = {
    0.1: 5.2525e-4,
    0.2: 4.24248e-3,
    0.25: 8.34694e-3,
    0.3: 0.01455537,
    0.4: 0.03533963,
    0.5: 0.07132592,
    0.6: 0.12875621,
    0.7: 0.21669292,
    0.75: 0.27639304,
    0.8: 0.35017968,
    0.875: 0.49765560,
    0.9: 0.56071394,
    0.9375: 0.67529593,
}


@pytest.mark.parametrize("sparsity", SPARSITY)
def test_unstructured_sparsity(sparsity: float) -> None:
    threshold = norm.ppf(0.5 + sparsity / 2)
    closed = 2 * (norm.cdf(threshold) - 0.5 - threshold * norm.pdf(threshold))
    assert error(chain(Sparsify(sparsity))) == pytest.approx(SPARSITY[sparsity], rel=2e-5)
    assert error(chain(Sparsify(sparsity))) == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("structure", ["1:2", "2:4", "1:4", "3:4", "2:8", "4:8", "2:3", "8:16"])
def test_n_of_m_by_order_statistics(structure: str) -> None:
    kept, group = map(int, structure.split(":"))
    assert error(chain(n_of_m(structure))) == pytest.approx(pruned_error(kept, group), rel=1e-9)


def test_n_of_m_in_closed_form_and_against_unstructured() -> None:
    assert error(chain(n_of_m("1:2"))) == pytest.approx(0.5 - 1 / math.pi, rel=1e-10)
    ratio = error(chain(n_of_m("64:128"))) / error(chain(Sparsify(0.5)))
    assert ratio == pytest.approx(1.029, abs=5e-4), "a top-k per group of 128 is 2.9 % worse"


def test_sparse_after_sparse() -> None:
    assert error(chain(Sparsify(0.5), Sparsify(0.5))) == pytest.approx(error(chain(Sparsify(0.75))), rel=1e-9)
    first = error(chain(Sparsify(0.5)))
    expected = first + 0.5 * pruned_error(2, 4, norm.ppf(0.75), 0.5)
    assert error(chain(Sparsify(0.5), n_of_m("2:4"))) == pytest.approx(expected, rel=1e-8)


def test_unstructured_after_n_of_m() -> None:
    def survivors_below(threshold: float) -> float:
        return 2 * quad(lambda x: kept_density(2, 4, x), 0, threshold, epsabs=1e-14)[0]

    low, high = 0.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if survivors_below(middle) < 0.25 else (low, middle)
    lost = 2 * quad(lambda x: x * x * kept_density(2, 4, x), 0, low, epsabs=1e-14)[0]
    assert error(chain(n_of_m("2:4"), Sparsify(0.5))) == pytest.approx(pruned_error(2, 4) + lost, rel=1e-8)


# Prune, then quantise the survivors


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75, 0.93])
@pytest.mark.parametrize(
    ("stage", "levels"),
    [
        (rms(1), integers(1, "midrise")),
        (rms(2), integers(2, "midrise")),
        (rms(2, "midtread"), integers(2, "midtread")),
        (rms(4, "twos"), integers(4, "twos")),
        (rms(4), integers(4, "midrise")),
        (rms(4, "e2m1", "float"), floats(2, 1)),
    ],
    ids=stages_only,
)
def test_survivors_get_the_global_optimum(sparsity: float, stage: Quantize, levels: Array) -> None:
    threshold = norm.ppf(0.5 + sparsity / 2)
    best, scale = dips(levels, threshold)[0]
    pruned = 2 * (norm.cdf(threshold) - 0.5 - threshold * norm.pdf(threshold))
    r = chain(Sparsify(sparsity), stage)
    assert error(r) == pytest.approx(pruned + best, rel=1e-8)
    bound = r.bound_stages[1]
    assert isinstance(bound, Quantize)
    assert bound.clip is not None
    survivor_rms = math.sqrt((1 - pruned) / (1 - sparsity))
    at_clip = rounding_error(levels * bound.clip * survivor_rms / levels.max(), threshold)
    assert at_clip == pytest.approx(best, rel=1e-8), f"not the scale {scale}"


def test_the_optimum_that_a_local_search_misses() -> None:
    r = chain(Sparsify(0.75), rms(2))
    bound = r.bound_stages[1]
    assert isinstance(bound, Quantize)
    assert bound.clip is not None
    survivor_rms = math.sqrt((1 - SPARSITY[0.75]) / 0.25)
    assert error(r) == pytest.approx(0.32010, abs=5e-6)
    assert bound.clip * survivor_rms / 1.5 == pytest.approx(3.236, abs=5e-4)
    (best, step), (second, other) = dips(integers(2, "midrise"), norm.ppf(0.875))[:2]
    assert step == pytest.approx(3.236, abs=5e-4)
    assert other == pytest.approx(1.098, abs=5e-4)
    assert second - best == pytest.approx(0.32199 - 0.32010, abs=1e-5)


def test_an_unused_zero_level_changes_nothing() -> None:
    ternary, sign = chain(Sparsify(0.5), rms(2, "midtread")), chain(Sparsify(0.5), rms(1))
    assert error(ternary) == pytest.approx(error(sign), rel=1e-9)


@pytest.mark.parametrize(
    ("stage", "levels"), [(rms(4), integers(4, "midrise")), (rms(2), integers(2, "midrise"))]
)
def test_quantising_after_n_of_m(stage: Quantize, levels: Array) -> None:
    r = chain(n_of_m("2:4"), stage)
    bound = r.bound_stages[1]
    assert isinstance(bound, Quantize)
    assert bound.clip is not None
    pruned = pruned_error(2, 4)
    scale = bound.clip * math.sqrt((1 - pruned) / 0.5) / levels.max()

    def density(x: float) -> float:
        return kept_density(2, 4, x)

    assert error(r) == pytest.approx(pruned + integrated(levels * scale, density), rel=1e-8)
    grid = np.linspace(-9, 9, 36_001)
    weight = np.array([density(float(x)) for x in grid]) * (grid[1] - grid[0])

    def riemann(s: float) -> float:
        return float(
            np.sum(weight * (grid - levels[np.searchsorted(borders(levels * s)[1:-1], grid)] * s) ** 2)
        )

    others = [riemann(float(s)) for s in scale * np.geomspace(0.2, 5, 101)]
    assert riemann(scale) <= min(others) * (1 + 1e-5)


# Scales from the largest magnitude: integrate over the distribution of the maximum


def group_absmax(num_bits: int, grid: str, group: int, kind: str = "int") -> Quantize:
    return Quantize(num_bits, kind, strategy="group", group_size=group, grid=grid)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "levels", "divisor", "at_maximum", "published"),
    [
        (group_absmax(4, "midtread", 128), integers(4, "midtread"), 7.0, 0.0, 0.013752),
        (group_absmax(4, "twos", 128), integers(4, "twos"), 7.5, 0.5, 0.012258),
        (group_absmax(4, "midrise", 128), integers(4, "midrise"), 7.5, 0.0, 0.011979),
        (group_absmax(2, "midtread", 128), integers(2, "midtread"), 1.0, 0.0, 0.588),
        (group_absmax(3, "twos", 96), integers(3, "twos"), 3.5, 0.5, None),
        (group_absmax(1, "midrise", 16), integers(1, "midrise"), 0.5, 0.0, None),
        (group_absmax(4, "e2m1", 32, "float"), floats(2, 1), 6.0, 0.0, None),
        (Quantize(4, strategy="channel"), integers(4, "twos"), 7.5, 0.5, None),
    ],
    ids=stages_only,
)
def test_absmax_scales_by_the_distribution_of_the_maximum(
    stage: Quantize, levels: Array, divisor: float, at_maximum: float, published: float | None
) -> None:
    group = stage.group_size or 4096
    exact = absmax_error(levels, divisor, group, at_maximum)
    assert published is None or exact == pytest.approx(published, rel=6e-5 if stage.num_bits == 4 else 1e-3)
    result = gmse(chain(stage))
    if stage.group_size is not None:
        assert result.method == "quadrature"
        assert result.value == pytest.approx(exact, rel=1e-7)
        result = monte_carlo(chain(stage), rounds=6)
    assert result.method == "monte carlo"
    assert 0 < result.standard_error < 0.01 * exact
    assert abs(result.value - exact) < 4 * result.standard_error


def test_rounding_the_scale_costs_what_the_conventions_say() -> None:
    x = torch.randn(128, 4096, generator=torch.Generator().manual_seed(1))
    symmetric = group_absmax(8, "midtread", 16)

    def measured(scale_dtype: Literal["bfloat16", "float16", "float32"]) -> float:
        stored = replace(symmetric, scale_dtype=scale_dtype)
        return float((chain(stored).project(x) - x).double().square().sum())

    assert measured("bfloat16") / measured("float32") == pytest.approx(1.037, abs=0.01)
    assert measured("float16") / measured("float32") == pytest.approx(1.0006, abs=0.0005)


# Monte Carlo against quadrature, and its honesty


@pytest.mark.parametrize(
    "representation",
    [
        chain(rms(1)),
        chain(Hadamard(64), rms(4)),
        chain(rms(4, "e2m1", "float")),
        chain(Sparsify(0.5)),
        chain(n_of_m("2:4")),
        chain(Sparsify(0.75), rms(2)),
        chain(Hadamard(128), n_of_m("2:4"), rms(4, "twos")),
        chain(Sparsify(0.5), n_of_m("2:4"), rms(3)),
        chain(n_of_m("4:8"), Sparsify(0.25), rms(4)),
    ],
    ids=stages_only,
)
def test_sampling_agrees_with_quadrature(representation: Representation) -> None:
    sampled = monte_carlo(representation, rounds=6)
    assert abs(sampled.value - error(representation)) < 4 * sampled.standard_error


def test_samples_are_the_same_every_time() -> None:
    stage = chain(Quantize(4, strategy="channel"))
    first = monte_carlo(stage, rounds=2)
    assert first == monte_carlo(stage, rounds=2)
    assert first != monte_carlo(stage, rounds=2, seed=1)


def test_the_standard_error_is_the_spread_over_seeds() -> None:
    stage = chain(Quantize(4, strategy="group", group_size=32))
    runs = [monte_carlo(stage, rounds=5, seed=seed) for seed in range(14)]
    spread = float(np.std([run.value for run in runs], ddof=1))
    claimed = math.sqrt(float(np.mean([run.standard_error**2 for run in runs])))
    assert 0.6 < spread / claimed < 1.5
    exact = absmax_error(integers(4, "twos"), 7.5, 32, 0.5)
    far = sum(abs(run.value - exact) > 2.78 * run.standard_error for run in runs)  # t with 4 degrees: 5 %
    assert far <= 3


def test_stages_that_break_independence_are_sampled() -> None:
    nested, mixed = chain(n_of_m("2:4"), n_of_m("1:2")), chain(Sparsify(0.5), Hadamard(128), rms(4))
    for r in (nested, mixed):
        assert [error is None for _, error in r.walk()][:2] == [False, True]
    sampled = monte_carlo(nested, rounds=6)
    assert abs(sampled.value - error(chain(n_of_m("1:4")))) < 4 * sampled.standard_error
    # A rotation makes the survivors nearly normal again.
    nearly = SPARSITY[0.5] + (1 - SPARSITY[0.5]) * UNIFORM[4][1]
    assert monte_carlo(mixed, rounds=6).value == pytest.approx(nearly, rel=3e-3)


def test_rotations_and_dense_cost_nothing() -> None:
    assert error(Representation()) == 0
    assert error(chain(Hadamard(128))) == 0
    assert gmse(Representation()).gaussian_bits == math.inf
    for stage in (rms(3), Sparsify(0.25), n_of_m("2:4")):
        assert error(chain(Hadamard(16), stage)) == error(chain(stage))


def test_gaussian_bits_is_shannons_bound_read_backwards() -> None:
    for bits in (0.5, 1.0, 3.7, -0.2):
        assert GaussianError(4**-bits, 0.0, "quadrature").gaussian_bits == pytest.approx(bits, rel=1e-12)


def test_survival_and_quantiles_of_plain_and_pruned_data() -> None:
    plain = Source()
    magnitudes = np.array([[0.0, 0.5], [1.0, 4.0]])
    np.testing.assert_allclose(plain.upper(magnitudes), 2 * norm.sf(magnitudes), rtol=1e-12)
    assert plain.mass == pytest.approx(1, rel=1e-13)
    assert plain.power == pytest.approx(1, rel=1e-13)
    for fraction in (0.01, 0.5, 0.99):
        assert plain.quantile(fraction) == pytest.approx(norm.ppf(0.5 + fraction / 2), rel=1e-11)
    survivors, _ = Sparsify(0.5).gaussian(plain) or (plain, 0.0)
    threshold = norm.ppf(0.75)
    expected = np.minimum(1, 2 * norm.sf(magnitudes) / (2 * norm.sf(threshold)))
    np.testing.assert_allclose(survivors.upper(magnitudes), expected, rtol=1e-9)
    assert survivors.mass == pytest.approx(0.5, rel=1e-11)
    assert survivors.quantile(0.5) == pytest.approx(norm.ppf(0.875), rel=1e-10)
    assert survivors.rms == pytest.approx(math.sqrt((1 - SPARSITY[0.5]) / 0.5), rel=1e-8)
