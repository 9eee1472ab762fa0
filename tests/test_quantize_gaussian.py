"""Gaussian errors of scale rules, against integrals written here and published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from rhoc.runtime.capacity import gmse, monte_carlo
from rhoc.runtime.gaussian import Source
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages.quantize import Quantize
from rhoc.runtime.stages.sparsify import Sparsify

from .gaussian_oracle import Array, borders, cell_error, floats, gaussian, integers, rounding_error

G128: dict[str, Any] = {"num_bits": 4, "strategy": "group", "group_size": 128}
MX: dict[str, Any] = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
INNER = Representation((Quantize(8, "float", scale_dtype="float32"),))


def group_error(
    levels: Array,
    group: int,
    scale: Callable[[float], float],
    jumps: list[float],
    sides: tuple[int, ...] = (1, -1),
) -> float:
    """Mean squared error where the scale is a function of the maximum M, which jumps at some M."""

    def given_maximum(maximum: float) -> float:
        values = levels * scale(maximum)
        inside = 2 * ndtr(maximum) - 1
        edges = np.clip(borders(values), -maximum, maximum)
        others = float(np.sum(cell_error(edges[:-1], edges[1:], values))) / inside
        ends = [float(np.abs(values - side * maximum).min() ** 2) for side in sides]
        chance = group * inside ** (group - 1) * 2 * gaussian(maximum)
        return float(chance * ((group - 1) * others + np.mean(ends)))

    pieces = [0.05, *(j for j in sorted(jumps) if 0.05 < j < 8), 8.0]
    return (
        math.fsum(
            quad(given_maximum, low, high, epsabs=1e-11, epsrel=1e-8, limit=100)[0]
            for low, high in pairwise(pieces)
        )
        / group
    )


def octaves(start: float) -> list[float]:
    return [start * 2.0**k for k in range(-6, 5)]


FLOOR = (lambda m: 2.0 ** (math.floor(math.log2(m)) - 2), octaves(1))
RCEIL = (lambda m: 2.0 ** math.ceil(math.log2(m / 6)), octaves(1.5))
THREE_QUARTERS = (lambda m: 4 / 3 * 2.0 ** (math.floor(math.log2(m)) - 2), octaves(1))
ROUND = (lambda m: 2.0 ** (math.floor(math.log2(m) + 0.5) - 2), octaves(math.sqrt(2)))


@pytest.mark.parametrize(
    ("observer", "rule", "at_one"),
    [
        ("mx_floor", FLOOR, 0.01322),
        ("mx_rceil", RCEIL, 0.01331),
        ("three_quarters", THREE_QUARTERS, 0.01386),
        ("mx_round", ROUND, None),
    ],
)
def test_microscaling_at_unit_deviation(observer: Any, rule: Any, at_one: float | None) -> None:
    stage = Quantize(observer=observer, **MX)
    exact = group_error(floats(2, 1), 32, *rule)
    assert stage.gaussian_at(1.0) == pytest.approx(exact, rel=1e-6)
    assert at_one is None or exact == pytest.approx(at_one, abs=5.1e-6)
    assert not stage.scale_free


@pytest.mark.parametrize(
    ("observer", "mean", "least", "most"),
    [
        ("mx_floor", 0.01336, 0.01276, 0.01397),
        ("mx_rceil", 0.01366, None, None),
        ("three_quarters", 0.01367, None, None),
    ],
)
def test_microscaling_over_an_octave(
    observer: Any, mean: float, least: float | None, most: float | None
) -> None:
    stage = Quantize(observer=observer, **MX)
    errors = [stage.gaussian_at(2 ** (k / 32)) for k in range(32)]
    values = np.array([error for error in errors if error is not None])
    assert len(values) == 32
    assert values.mean() == pytest.approx(mean, abs=1.1e-5)
    # The extremes of the table are those of samples, and so a little farther out.
    assert least is None or least < values.min() == pytest.approx(least, abs=6e-5)
    assert most is None or most > values.max() == pytest.approx(most, abs=6e-5)
    assert stage.gaussian_at(2.0) == pytest.approx(stage.gaussian_at(1.0), rel=1e-9)


@pytest.mark.parametrize(("grid", "published"), [("e4m3", 0.000704507), ("e5m2", 0.00279060)])
def test_fp8_elements_do_not_feel_the_shared_exponent(grid: str, published: float) -> None:
    for observer in ("mx_rceil", "mx_ceil"):
        stage = Quantize(8, "float", grid=grid, strategy="group", group_size=32, observer=observer)  # type: ignore[arg-type]
        assert stage.gaussian_at(1.0) == pytest.approx(published, rel=1e-5)


@pytest.mark.parametrize(
    ("chosen", "divisor", "levels", "published"),
    [
        ({"absmax_rule": "sym"}, 7.0, integers(4, "twos"), 0.013752),
        ({}, 7.5, integers(4, "twos"), 0.012258),
        ({"absmax_rule": "full"}, 8.0, integers(4, "twos"), 0.011131),
        ({"grid": "midrise"}, 7.5, integers(4, "midrise"), 0.011979),
        ({"absmax_rule": "signed"}, 8.0, integers(4, "twos"), None),
        ({"type": "float", "grid": "nf4", "group_size": 64}, 1.0, None, None),
    ],
)
def test_group_absmax_conventions(
    chosen: dict[str, Any], divisor: float, levels: Array | None, published: float | None
) -> None:
    stage = Quantize(**(G128 | chosen))
    if levels is None:
        levels = np.array(stage.levels.levels)
    sides = (-1,) if stage.absmax_rule == "signed" else (1, -1)
    exact = group_error(levels, stage.group_size or 0, lambda m: m / divisor, [1.0, 2.0, 3.0, 4.0], sides)
    result = gmse(Representation((stage,)))
    assert result.method == "quadrature"
    assert result.value == pytest.approx(exact, rel=1e-7)
    assert published is None or result.value == pytest.approx(published, abs=6e-7)
    assert monte_carlo(Representation((stage,)), rounds=3).value == pytest.approx(exact, rel=0.015)


@pytest.mark.parametrize(
    ("stage", "published", "tolerance"),
    [
        (Quantize(4, "float", strategy="tensor_group"), 9.04e-3, 2e-5),
        (Quantize(4, "float", strategy="tensor_group", observer="four_over_six"), 7.55e-3, 3e-5),
        (Quantize(4, "float", strategy="block", block_structure=(16, 16), scales=INNER), 12.4e-3, 6e-5),
        (Quantize(observer="rms", scale_dtype="e8m0", **MX), 0.0133, 1.5e-4),
    ],
    ids=str,
)
def test_published_errors_that_are_sampled(stage: Quantize, published: float, tolerance: float) -> None:
    sampled = monte_carlo(Representation((stage,)), rounds=6)
    assert sampled.value == pytest.approx(published, abs=tolerance + 3 * sampled.standard_error)


@pytest.mark.parametrize(
    ("chosen", "scale", "published"),
    [
        ({"observer": "absmean"}, math.sqrt(2 / math.pi), 0.2634),
        ({"observer": "learned"}, 2 * math.sqrt(2 / math.pi), None),
        ({"observer": "mse"}, None, 0.1901740),
        ({"observer": "percentile", "percentile": 50.0}, 0.674489750196, None),
    ],
)
def test_ternary_rules_in_the_limit(
    chosen: dict[str, Any], scale: float | None, published: float | None
) -> None:
    error = gmse(Representation((Quantize(2, grid="ternary", **chosen),)))
    assert error.method == "quadrature"
    if scale is not None:
        assert error.value == pytest.approx(rounding_error(np.array([-1.0, 0, 1]) * scale), rel=1e-9)
    assert published is None or error.value == pytest.approx(
        published, abs=5.1e-5 if published > 0.2 else 5.1e-8
    )


@pytest.mark.parametrize(
    "stage",
    [
        Quantize(8, scale_dtype="bfloat16", strategy="group", group_size=16),
        Quantize(8, scale_dtype="float16", strategy="group", group_size=16),
        Quantize(4, symmetric=False, strategy="group", group_size=16),
        Quantize(4, scales=INNER, strategy="group", group_size=16),
        Quantize(4, observer="mse", strategy="group", group_size=16),
        Quantize(4, scale_dtype="e8m0", observer="mse"),
    ],
    ids=str,
)
def test_what_quadrature_does_not_reach(stage: Quantize) -> None:
    assert stage.gaussian(Source()) is None


def test_groups_of_survivors_are_sampled() -> None:
    survivors, _ = Sparsify(0.5).gaussian(Source()) or (Source(), 0.0)
    assert survivors.keeps
    assert Quantize(**G128).gaussian(survivors) is None
