"""Randomness that a seed binds: stochastic rounding, fresh signs, and the corrected scales of MS-EDEN."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtr
from torch import Tensor

from rhoc.runtime.capacity import error_on, gmse, monte_carlo
from rhoc.runtime.representation import Representation
from rhoc.runtime.seeds import derived
from rhoc.runtime.stages import Hadamard, Quantize, hadamard
from rhoc.runtime.stages.grids import parse_grid
from rhoc.runtime.stages.scales.stochastic import between
from rhoc.runtime.text_parser import from_text

from .gaussian_oracle import Array, floats, gaussian, integers
from .projected import normal

pytestmark = pytest.mark.usefixtures("one_thread")

STOCHASTIC = [
    "quantize(int4, midrise, channel, rms, stochastic)",
    "quantize(int4, asymmetric, group=24, absmax, stochastic)",
    "quantize(int4, asymmetric, group=24, absmax, stochastic, zero=float16)",
    "quantize(e2m1, group=32, three_quarters, stochastic)",
    "quantize(e2m1, tensor_group=16, absmax, stochastic)",
    "quantize(e2m1, tensor_group=16, four_over_six, stochastic)",
    "quantize(nf4, block=8x16, absmax, stochastic)",
    "quantize(float2, levels=[-3, -1, 0, 2], tensor, absmax, stochastic)",
    "quantize(int8, twos, group=64, absmax, scale=quantize(e4m3, tensor, absmax, stochastic))",
    "quantize(e2m1, tensor_group=16, ms_eden)",
    "hadamard(32, signs=fresh) >> quantize(e2m1, group=32, three_quarters)",
    "entropy(of=quantize(int4, twos, channel, absmax, stochastic))",
    "product(8) + quantize(int4, twos, channel, absmax, stochastic)",
    "product(4, left=quantize(int4, twos, channel, absmax, stochastic))",
]


@pytest.mark.parametrize(
    ("name", "bits"), [("midrise", 4), ("twos", 4), ("e2m1", 4), ("e4m3", 8), ("nf4", 4), ("unsigned", 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_goes_to_one_of_its_neighbours_and_is_right_on_average(
    name: str, bits: int, dtype: torch.dtype
) -> None:
    """Up with probability (x - l) / (u - l), within five standard errors: mean x, variance (x - l) (u - x)."""
    grid, times = parse_grid(name, bits), 4000
    levels = torch.tensor(grid.levels, dtype=torch.float64).to(dtype)
    rank = torch.arange(97) * 7 % (len(levels) - 1)
    low, high = levels[rank], levels[rank + 1]
    x = low + (high - low) * (torch.arange(97) / 97).to(dtype)
    generator = torch.Generator().manual_seed(3)
    drawn = between(grid, x.expand(times, -1).clone(), generator)
    up = (drawn == high).double()
    assert bool(((drawn == low) | (drawn == high)).all())
    chance = (x - low).double() / (high - low).double()
    error = (up.mean(0) - chance).abs()
    assert bool((error <= 5 * (chance * (1 - chance) / times).sqrt() + 1e-6).all())
    variance = ((x - low) * (high - x)).double()
    assert float(drawn.double().var(0).sum()) == pytest.approx(float(variance.sum()), rel=0.05)


@pytest.mark.parametrize(
    ("name", "bits"), [("midrise", 4), ("twos", 8), ("e2m1", 4), ("e4m3", 8), ("nf3", 3)]
)
def test_levels_stay_ends_clip_and_what_is_no_number_stays_none(name: str, bits: int) -> None:
    grid = parse_grid(name, bits)
    levels = torch.tensor(grid.levels, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    many = levels.repeat(2000)
    assert torch.equal(between(grid, many.clone(), generator), many)
    beyond = torch.tensor([-1e30, -torch.inf, 1e30, torch.inf, torch.nan])
    ends = [grid.levels[0]] * 2 + [grid.levels[-1]] * 2
    found = between(grid, beyond, generator)
    assert torch.equal(found[:4], torch.tensor(ends))
    assert bool(found[4].isnan())


SHAPES: list[tuple[int, ...]] = [(5, 96), (2, 16, 64), (700, 320)]
CASES = [
    (t, s) for t in STOCHASTIC for s in SHAPES if s == SHAPES[0] or not t.startswith(("entropy", "product"))
]


@pytest.mark.parametrize(("text", "shape"), CASES)
def test_a_seed_decides_and_without_one_nothing_is_random(text: str, shape: tuple[int, ...]) -> None:
    chain = from_text(text)
    assert chain.is_random
    assert str(chain) == text
    x = normal(*shape).float()
    first = chain.drawn(7)
    assert torch.equal(first.project(x), chain.drawn(7).project(x))
    assert torch.equal(first.project(x), first.project(x))
    assert torch.equal(first.decode(first.encode(x)), first.project(x))
    assert not torch.equal(first.project(x), chain.drawn(8).project(x))
    if "tensor_group=16, absmax" not in text:  # whose scales leave room for stochastic rounding
        assert torch.equal(chain.project(x), nearest(text).project(x))
    assert chain.layout(shape, x.dtype) == first.layout(shape, x.dtype)
    view = first.view(x)
    if chain.rotation.is_dense:
        assert torch.equal(view.projected.to(x.dtype), first.project(x))


def nearest(text: str) -> Representation:
    """The chain that one without a seed should be."""
    return from_text(text.replace(", stochastic", "").replace("fresh", "0"))


def test_nearest_is_the_default_and_has_no_seed() -> None:
    assert Quantize(4, rounding="nearest") == Quantize(4)
    chain = from_text("hadamard(32, signs=3) >> quantize(int4, twos, channel, absmax)")
    assert not chain.is_random
    assert chain.drawn(1) is chain


def test_stages_of_a_chain_have_seeds_of_their_own() -> None:
    """Equal stages, at different places: their random numbers have nothing to do with each other."""
    stage = "quantize(int2, midtread, tensor, rms, stochastic, clip=2)"
    chain, x = from_text(f"{stage} + {stage}"), torch.full((4, 4096), 0.3)
    (total,) = chain.drawn(5).stages
    first, second = (term.project(x) - x for term in total.terms)  # type: ignore[attr-defined]
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(x.numel())
    assert len({derived(s, p) for s in range(200) for p in range(5)}) == 1000
    assert all(0 <= derived(s) < 2**63 for s in (0, 1, 2**62, 2**64 - 1))


def test_two_chains_can_share_a_rotation_and_nothing_else() -> None:
    chain = from_text("hadamard(64, signs=fresh) >> quantize(int4, midrise, channel, rms, stochastic)")
    one, other, third = chain.drawn(1, rotation=9), chain.drawn(2, rotation=9), chain.drawn(1)
    x = normal(3, 64)
    turned = one.rotation.encode(x).carry
    assert torch.equal(turned, other.rotation.encode(x).carry)
    assert not torch.equal(turned, third.rotation.encode(x).carry)
    assert not torch.equal(one.core.project(x), other.core.project(x))


def test_fresh_signs_are_a_rotation_and_are_not_remembered() -> None:
    stage, x = Hadamard(32, signs="fresh"), normal(3, 96)
    assert torch.equal(stage.encode(x)[0], Hadamard(32, signs=0).encode(x)[0])
    before = hadamard.fixed_signs.cache_info()
    seen = set()
    for seed in range(40):
        drawn = stage.drawn(seed)
        turned, _ = drawn.encode(x)
        torch.testing.assert_close(drawn.decode(turned, {}), x, rtol=0, atol=1e-12)
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)
        seen.add(tuple(turned[0].tolist()))
    assert len(seen) == 40
    assert hadamard.fixed_signs.cache_info() == before
    assert str(Representation((stage,))) == "hadamard(32, signs=fresh)"
    with pytest.raises(ValueError, match="or fresh"):
        Hadamard(32, signs=-1)


def variance_error(
    levels: Array, group: int, scale: Callable[[float], float], jumps: list[float], deviation: float = 1.0
) -> float:
    """Mean of (x - l) (u - x) over groups of normal numbers whose scale is a function of their maximum."""

    def of(x: float, values: Array) -> float:
        if not values[0] <= x <= values[-1]:
            return float(np.abs(values - x).min() ** 2)
        rank = min(int(np.searchsorted(values, x, side="right")) - 1, len(values) - 2)
        return float((x - values[rank]) * (values[rank + 1] - x))

    nodes, weights = np.polynomial.legendre.leggauss(6)

    def given_maximum(maximum: float) -> float:
        values = levels * scale(maximum * deviation) / deviation
        edges = np.unique(np.clip([-maximum, *values, maximum], -maximum, maximum))
        others = 0.0
        for low, high in pairwise(edges):
            x = (low + high) / 2 + (high - low) / 2 * nodes
            others += (
                float(np.sum([w * of(v, values) * gaussian(v) for v, w in zip(x, weights, strict=True)]))
                * (high - low)
                / 2
            )
        inside = 2 * ndtr(maximum) - 1
        at_end = (of(maximum, values) + of(-maximum, values)) / 2
        chance = group * inside ** (group - 1) * 2 * gaussian(maximum)
        return float(chance * ((group - 1) * others / inside + at_end))

    pieces = [0.5, *(j for j in sorted(jumps) if 0.5 < j < 6), 6.0]
    return (
        math.fsum(quad(given_maximum, a, b, epsabs=1e-7, epsrel=1e-6)[0] for a, b in pairwise(pieces)) / group
    )


def test_gaussian_error_of_groups_is_the_integral_of_the_variance() -> None:
    int4 = Quantize(4, strategy="group", group_size=32, grid="midtread", rounding="stochastic")
    exact = variance_error(integers(4, "midtread"), 32, lambda m: m / 7, [])
    assert gmse(Representation((int4,))).value == pytest.approx(exact, rel=1e-5)
    mx = from_text("quantize(e2m1, group=32, three_quarters, stochastic)")
    octaves = [2.0**k for k in range(-3, 4)]
    exact = variance_error(floats(2, 1), 32, lambda m: 4 / 3 * 2.0 ** (math.floor(math.log2(m)) - 2), octaves)
    assert gmse(mx).at_unit == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "published", "half_a_digit"),
    [
        ("quantize(e2m1, group=32, three_quarters, stochastic)", 0.02778, 5e-6),  # Quartet, Table 2: 2.77e-2
        ("quantize(e2m1, tensor_group=16, absmax, stochastic)", 23.5e-3, 5e-5),  # Quartet II, Table 1
        ("quantize(e2m1, tensor_group=16, ms_eden)", 9.4e-3, 5e-5),
    ],
)
def test_published_errors(text: str, published: float, half_a_digit: float) -> None:
    found = gmse(from_text(text))
    assert found.value == pytest.approx(published, abs=half_a_digit + 3 * found.standard_error)


@pytest.mark.parametrize("grid", ["midrise", "midtread", "twos"])
def test_gaussian_error_of_one_scale_and_monte_carlo_agree(grid: Any) -> None:
    stage = Quantize(3, strategy="channel", observer="rms", grid=grid, clip=2.0, rounding="stochastic")
    values = integers(3, grid) * 2.0 / integers(3, grid)[-1]
    low, high = values[:-1], values[1:]
    between_levels = math.fsum(
        quad(lambda x, a=a, b=b: (x - a) * (b - x) * gaussian(x), a, b)[0]
        for a, b in zip(low, high, strict=True)
    )
    beyond = sum(
        quad(lambda x, v=v: (x - v) ** 2 * gaussian(x), *ends)[0]
        for v, ends in ((values[-1], (values[-1], 12)), (values[0], (-12, values[0])))
    )
    chain = Representation((stage,))
    assert gmse(chain).value == pytest.approx(between_levels + beyond, rel=1e-9)
    sampled = monte_carlo(chain, rounds=8)
    assert abs(sampled.value - gmse(chain).value) < 4 * sampled.standard_error + 1e-3 * sampled.value
    x = normal(4, 512)
    assert error_on(chain, x, 1) != error_on(chain, x, 2)


def aligned(text: str, x: Tensor, times: int) -> tuple[float, float, float]:
    """1 - <x, mean R(x)> / <x, x> over seeds, its standard error, and the square of the mean's error over
    what the spread of single ones explains."""
    chain = from_text(text)
    found = torch.stack([chain.drawn(seed).project(x) for seed in range(times)])
    share = (found * x).sum((-1, -2)) / (x * x).sum()
    explained = (found.var(0) / times).sum()
    excess = (found.mean(0) - x).square().sum() / explained
    return float(1 - share.mean()), float(share.std() / math.sqrt(times)), float(excess)


MS_EDEN = "hadamard(128, signs=fresh) >> quantize(e2m1, tensor_group=16, ms_eden)"
RTN = "hadamard(128, signs=fresh) >> quantize(e2m1, tensor_group=16, absmax)"


def test_ms_eden_is_right_on_average_and_plain_rounding_is_not() -> None:
    """The spread of `excess` over 2048 numbers is about sqrt(2 / 2048)."""
    x = normal(8, 256)
    off, error, excess = aligned(MS_EDEN, x, 500)
    assert abs(off) < 4 * error
    assert excess == pytest.approx(1, abs=0.15)
    off, error, excess = aligned(RTN, x, 500)
    assert off > 20 * error
    assert excess > 1.5


@pytest.mark.parametrize(
    "text",
    [
        "quantize(e2m1, group=32, three_quarters, stochastic)",
        "quantize(e2m1, tensor_group=16, absmax, stochastic)",
        "quantize(e3m0, tensor, absmax, stochastic)",  # LUQ, 2112.10769: underflow at random too
    ],
)
def test_stochastic_rounding_that_never_clips_is_right_on_average(text: str) -> None:
    x = normal(8, 256) ** 3
    off, error, excess = aligned(text, x, 500)
    assert abs(off) < 4 * error
    assert excess == pytest.approx(1, abs=0.4)  # few numbers carry most of it


def test_misalignment_of_microscaled_rounding_to_nearest() -> None:
    """1 - E[1 / S] with 1 / S = <x, R(x)> / <x, x> (Quartet, Table 2): 9.3e-3, by the integral of the error and
    of the power of R(x), and 0 for stochastic rounding."""
    chain = from_text("quantize(e2m1, group=32, three_quarters)")
    off = []
    for step in range(16):
        x = normal(128, 1024) * 2.0 ** ((step + 0.5) / 16)
        groups, projected = x.reshape(-1, 32), chain.project(x).reshape(-1, 32)
        inverse = (groups * projected).sum(-1) / groups.square().sum(-1)
        off.append(float(1 - inverse.mean()))
    assert np.mean(off) == pytest.approx(9.3e-3, abs=2e-4)
    off = [
        float(1 - (x * from_text(STOCHASTIC[3]).drawn(seed).project(x)).sum() / x.square().sum())
        for seed in range(16)
        for x in (normal(128, 1024) * 2.0 ** (seed / 16),)
    ]
    assert abs(np.mean(off)) < 4 * np.std(off) / 4


def test_ms_eden_step_by_step() -> None:
    """Scales to 6 (16/17) / 0.93 under 256, codes to nearest, scales times S between two levels of e4m3."""
    x = normal(4, 64)
    chain = from_text("quantize(e2m1, tensor_group=16, ms_eden)")
    e2m1, e4m3 = floats(2, 1), floats(4, 3)[(np.abs(floats(4, 3)) <= 448)]
    groups = x.reshape(-1, 16).numpy()
    wanted = np.abs(groups).max(1, keepdims=True) * 0.93 * 17 / 16 / 6
    whole = np.float32(wanted.max() / 256)
    stored = e4m3[np.abs(wanted / whole - e4m3).argmin(1)][:, None]
    rounded = e2m1[np.abs((groups / (stored * whole))[..., None] - e2m1).argmin(-1)]
    factor = (groups**2).sum(1) / (groups * rounded * stored * whole).sum(1)
    corrected = stored[:, 0] * factor
    rank = np.searchsorted(e4m3, corrected, side="right") - 1
    for seed in (None, 1, 2, 3):
        code = (chain if seed is None else chain.drawn(seed)).encode(x)
        named = code.named()
        assert float(named["0.scale.0.scale"]) == whole
        scales = parse_grid("e4m3", 8).decode(named["0.scale.carry"], torch.float64).flatten().numpy()
        assert bool(((scales == e4m3[rank]) | (scales == e4m3[rank + 1])).all())
        if seed is None:
            assert np.array_equal(scales, e4m3[np.abs(corrected[:, None] - e4m3).argmin(1)])
        decoded = chain.decode(code).reshape(-1, 16).numpy()
        np.testing.assert_allclose(decoded, rounded * scales[:, None] * whole, rtol=1e-6)
    assert factor.max() * 256 < 448


def test_ms_eden_takes_zeros_and_tensors_of_any_size() -> None:
    chain = from_text("quantize(e2m1, tensor_group=16, ms_eden)").drawn(1)
    for x in (torch.zeros(3, 16), torch.zeros(0, 16), normal(3, 21), normal(5), torch.zeros(2, 0)):
        found = chain.project(x)
        assert found.shape == x.shape
        assert bool(found.isfinite().all())
    x = torch.cat([torch.zeros(1, 16), normal(1, 16).float()])
    assert not chain.project(x)[0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observer": "ms_eden"}, "needs strategy: tensor_group"),
        ({"observer": "ms_eden", "strategy": "tensor_group", "rounding": "stochastic"}, "leave rounding out"),
    ],
)
def test_ms_eden_says_what_it_needs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(4, "float", **options)
