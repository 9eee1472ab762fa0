"""Grids against formulas, published tables and exact arithmetic written here."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from rhoc.runtime.capacity import gmse
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize
from rhoc.runtime.stages.grids import (
    GRIDS,
    INTEGER_GRIDS,
    FloatGrid,
    Grid,
    IntegerGrid,
    LevelGrid,
    parse_grid,
)

from .gaussian_oracle import cell_error, dips, gaussian, integrated
from .strategies import FLOAT_GRIDS

MINIFLOATS = sorted({*FLOAT_GRIDS, "e4m1", "e3m4", "e2m5", "e6m1", "e7m0", "e1m6"})
VARIANTS = (
    "e2m1fn",
    "e4m3fn",
    "e4m3ieee",
    "e4m3fnuz",
    "e4m3all",
    "e5m2fnuz",
    "e5m2all",
    "e3m2ieee",
    "e2m0ieee",
)
CLOSE = (-2.0, -1.0, 1.0, 1.0001, 1.0002, 1.5)  # more than one border among numbers with the same upper bits
FAR = (-3e38, 0.0, 1e-40, 2e-38, 1.0, 3e38)  # subnormal and nearly infinite float32 numbers


def float_bits(name: str) -> int:
    return 1 + int(name[1]) + int(name[3])


ALL = [
    *(parse_grid(name, bits) for name in ("midrise", "twos", "unsigned") for bits in (1, 2, 3, 4, 8)),
    *(parse_grid("midtread", bits) for bits in (2, 3, 4, 8)),
    parse_grid("binary", 1),
    parse_grid("ternary", 2),
    *(parse_grid(name, float_bits(name)) for name in (*MINIFLOATS, *VARIANTS)),
    *(parse_grid("lloyd", bits) for bits in (1, 2, 4, 8)),
    *(parse_grid("nf", bits) for bits in (2, 4, 8)),
    *(parse_grid(name, bits) for name in ("log", "logsqrt2", "apot") for bits in (2, 4, 8)),
    parse_grid("fp4-bnb", 4),
    parse_grid((-1.0, -0.3, 0.2, 1.0), 2),
    parse_grid(CLOSE, 3),
    parse_grid(FAR, 8),
]


def named(grid: object) -> str:
    return f"levels{len(grid.values)}" if isinstance(grid, LevelGrid) else str(grid)


# the nearest level


def tie(grid: Grid, low: int, high: int, above: float) -> int:
    """The code, of two whose values are equally far, that is right; `above` is the upper value."""
    if isinstance(grid, IntegerGrid):
        up = grid.variant == "midrise" or above % 2 == 0
    else:
        up = low % 2 == 1 and high % 2 == 0
    return high if up else low


def expected_codes(grid: Grid, x: Tensor) -> list[int]:
    """The nearest code of each number by exact arithmetic."""
    codes = torch.arange(2**grid.bits, dtype=torch.uint8)
    values = grid.decode(codes, x.dtype).tolist()
    known = {value: code for code, value in reversed(list(enumerate(values)))}
    levels = torch.tensor(grid.levels, dtype=torch.float64).to(x.dtype).tolist()
    exact = [Fraction(level) for level in levels]
    found = []
    for number in x.tolist():
        if math.isinf(number):
            found.append(known[levels[-1] if number > 0 else levels[0]])
            continue
        at = bisect_left(levels, number)
        if at in (0, len(levels)) or levels[at] == number:
            found.append(known[levels[min(at, len(levels) - 1)]])
            continue
        below, above = Fraction(number) - exact[at - 1], exact[at] - Fraction(number)
        low, high = known[levels[at - 1]], known[levels[at]]
        found.append(tie(grid, low, high, levels[at]) if below == above else low if below < above else high)
    return found


def telling_numbers(grid: Grid, dtype: torch.dtype) -> Tensor:
    """Levels, the middles between them, and both neighbours of each; random and extreme numbers."""
    levels = torch.tensor(grid.levels, dtype=torch.float64).to(dtype)
    middles = (levels.double()[1:] / 2 + levels.double()[:-1] / 2).to(dtype)
    points = torch.cat([levels, middles])
    sides = [torch.nextafter(points, torch.tensor(side, dtype=dtype)) for side in (-math.inf, math.inf)]
    seeded = torch.Generator().manual_seed(0)
    random = torch.randn(200, generator=seeded, dtype=torch.float64) * min(float(levels[-1]), 1e30)
    small = random * torch.logspace(-12, 0, 200, dtype=torch.float64)
    largest = torch.finfo(dtype).max
    ends = torch.tensor([0.0, -0.0, math.inf, -math.inf, largest, -largest], dtype=dtype)
    return torch.cat([points, *sides, random.to(dtype), small.to(dtype), ends])


def bits_of(x: Tensor) -> Tensor:
    return x.view({torch.float32: torch.int32, torch.float64: torch.int64}[x.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", ALL, ids=named)
def test_every_number_goes_to_the_nearest_level(grid: Grid, dtype: torch.dtype) -> None:
    x = telling_numbers(grid, dtype)
    codes = grid.encode(x)
    assert codes.dtype == torch.uint8
    assert codes.tolist() == expected_codes(grid, x)
    decoded = grid.decode(codes, dtype)
    assert decoded.dtype == dtype
    assert torch.equal(bits_of(grid.project(x.clone())), bits_of(decoded)), "bit for bit, no minus zero"


@pytest.mark.parametrize("grid", ALL, ids=named)
def test_levels_ascend_and_have_codes_of_their_own(grid: Grid) -> None:
    levels = torch.tensor(grid.levels, dtype=torch.float64)
    assert (levels.diff() > 0).all()
    codes = grid.encode(levels)
    assert len(set(codes.tolist())) == len(levels) <= 2**grid.bits
    assert torch.equal(grid.decode(codes, torch.float64), levels)
    assert grid.half_width == float(levels.diff().max()) / 2
    single = levels.float()
    assert torch.equal(grid.decode(grid.encode(single), torch.float32), single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", ALL, ids=named)
def test_nan_stays_nan_when_projected(grid: Grid, dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, 0.3, -math.nan], dtype=dtype)
    projected = grid.project(x.clone())
    assert projected.isnan().tolist() == [True, False, True]
    assert projected[1] == grid.decode(grid.encode(x[1:2]), dtype)[0]


@pytest.mark.parametrize(
    "grid", [parse_grid("nf4", 4), parse_grid("e2m1", 4), parse_grid("twos", 4)], ids=named
)
def test_any_layout_and_dtype(grid: Grid) -> None:
    x = torch.randn(300, 700, generator=torch.Generator().manual_seed(1))  # several pieces
    codes = grid.encode(x)
    assert torch.equal(grid.encode(x.T), codes.T)
    assert torch.equal(grid.decode(codes.T, torch.float32), grid.decode(codes, torch.float32).T)
    assert torch.equal(
        grid.project(x.T.clone(memory_format=torch.preserve_format)), grid.decode(codes, torch.float32).T
    )
    assert torch.equal(grid.encode(x[:, ::3]), codes[:, ::3])
    assert torch.equal(grid.project(x.clone()[:, ::3]), grid.decode(codes, torch.float32)[:, ::3])
    assert torch.equal(grid.encode(x.bfloat16()), grid.encode(x.bfloat16().float()))
    for shape in ((), (0,), (3, 0, 2), (1, 1)):
        part = torch.full(shape, 0.9)
        assert grid.encode(part).shape == grid.project(part.clone()).shape == shape
        assert grid.decode(grid.encode(part), torch.float64).shape == shape
    meta = torch.empty(4, 5, device="meta")
    assert grid.encode(meta).shape == grid.project(meta).shape == (4, 5)


# levels by formula


FP8 = {
    "e4m3": (torch.float8_e4m3fn, 448.0),
    "e4m3fn": (torch.float8_e4m3fn, 448.0),
    "e4m3fnuz": (torch.float8_e4m3fnuz, 240.0),
    "e5m2": (torch.float8_e5m2, 57344.0),
    "e5m2ieee": (torch.float8_e5m2, 57344.0),
    "e5m2fnuz": (torch.float8_e5m2fnuz, 57344.0),
}


@pytest.mark.parametrize("name", FP8)
def test_every_fp8_code_has_the_value_that_torch_gives_it(name: str) -> None:
    dtype, largest = FP8[name]
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(dtype).float()
    grid = parse_grid(name, 8)
    assert torch.equal(
        grid.decode(codes, torch.float32).nan_to_num(99, 98, 97), values.nan_to_num(99, 98, 97)
    )
    finite = values.isfinite()
    assert grid.levels[-1] == -grid.levels[0] == largest == grid.absmax_level
    assert grid.levels == tuple(sorted(set(values[finite].tolist())))
    nonzero = finite & (codes != 128)  # minus zero is never produced
    assert torch.equal(grid.encode(values[nonzero]), codes[nonzero])


@pytest.mark.parametrize("name", FP8)
def test_fp8_rounds_as_torch_does(name: str) -> None:
    dtype, largest = FP8[name]
    grid = parse_grid(name, 8)
    x = telling_numbers(grid, torch.float32)
    expected = x.clamp(-largest, largest).to(dtype).float()
    assert torch.equal(grid.decode(grid.encode(x), torch.float32), expected)


def test_e2m1_is_its_table_with_ties_to_even() -> None:
    grid = parse_grid("e2m1", 4)
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    codes = torch.arange(16, dtype=torch.uint8)
    assert grid.decode(codes, torch.float64).tolist() == table + [-value for value in table]
    ties = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0, 7.0: 6.0, 1e9: 6.0}
    x = torch.tensor([*ties, *(-tie for tie in ties)], dtype=torch.float64)
    expected = [*ties.values(), *(-value for value in ties.values())]
    assert grid.decode(grid.encode(x), torch.float64).tolist() == expected


def minifloat(exponent_bits: int, mantissa_bits: int, reserved: int, more_bias: int = 0) -> list[Fraction]:
    """Non-negative values in code order: subnormals, then one octave per exponent."""
    bias = 2 ** (exponent_bits - 1) - 1 + more_bias
    fractions = [Fraction(m, 2**mantissa_bits) for m in range(2**mantissa_bits)]
    values = [f * Fraction(2) ** (1 - bias) for f in fractions]
    values += [(1 + f) * Fraction(2) ** (e - bias) for e in range(1, 2**exponent_bits) for f in fractions]
    return values[: len(values) - reserved]


@pytest.mark.parametrize("name", [*MINIFLOATS, *VARIANTS])
def test_minifloats_by_exact_arithmetic(name: str) -> None:
    exponent_bits, mantissa_bits, variant = int(name[1]), int(name[3]), name[4:]
    # OCP FP8 gives up codes: E4M3 its last (NaN), E5M2 its top exponent (infinity and three NaN).
    reserved = {"e4m3": 1, "e5m2": 4, "e4m3fn": 1}.get(name, 2**mantissa_bits if variant == "ieee" else 0)
    grid = parse_grid(name, float_bits(name))
    assert isinstance(grid, FloatGrid)
    magnitudes = minifloat(exponent_bits, mantissa_bits, reserved, int(variant == "fnuz"))
    assert [Fraction(m) for m in grid.magnitudes] == magnitudes
    assert grid.absmax_level == magnitudes[-1]
    assert [Fraction(level) for level in grid.levels] == sorted({*magnitudes, *(-m for m in magnitudes)})


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_integer_grids_by_formula(num_bits: int) -> None:
    top = 2 ** (num_bits - 1)
    formula = {
        "midrise": ([k + 0.5 for k in range(-top, top)], top - 0.5),
        "midtread": ([float(k) for k in range(-(top - 1), top)], top - 1),
        "twos": ([float(k) for k in range(-top, top)], top - 0.5),
        "unsigned": ([float(k) for k in range(2 * top)], 2 * top - 1),
    }
    for name, (levels, absmax) in formula.items():
        grid = IntegerGrid(num_bits, name)
        assert list(grid.levels) == levels
        assert grid.absmax_level == absmax
        codes = torch.arange(len(levels), dtype=torch.uint8)
        assert grid.decode(codes, torch.float64).tolist() == levels


def test_binary_and_ternary() -> None:
    assert parse_grid("binary", 1).levels == (-0.5, 0.5)
    assert parse_grid("ternary", 2).levels == (-1.0, 0.0, 1.0)


def test_nf4_is_the_published_table() -> None:
    grid = parse_grid("nf4", 4)
    assert grid == parse_grid("nf", 4)
    assert torch.tensor(grid.levels).double().tolist() == list(grid.levels), "float32 numbers"
    # The construction of QLoRA's code: quantiles from 0.9677083 down, one more above zero than below.
    up = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    down = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    built = np.sort(np.concatenate([up, [0.0], down])) / up.max()
    np.testing.assert_allclose(grid.levels, built, rtol=0, atol=1e-6)
    assert grid.levels[1] == -0.6961928009986877
    assert grid.levels[8] == 0.07958029955625534


@pytest.mark.parametrize("num_bits", [2, 3, 5, 6, 7, 8])
def test_normal_floats_of_other_widths(num_bits: int) -> None:
    count = 2**num_bits
    offset = 1 - 0.5 * (1 / (2 * count) + 1 / (2 * (count - 1)))
    up = norm.ppf(np.linspace(offset, 0.5, count // 2 + 1)[:-1])
    down = -norm.ppf(np.linspace(offset, 0.5, count // 2)[:-1])
    built = np.sort(np.concatenate([up, [0.0], down])) / up.max()
    assert len(built) == count
    np.testing.assert_allclose(parse_grid(f"nf{num_bits}", num_bits).levels, built, rtol=0, atol=1e-11)


def test_fp4_of_bitsandbytes() -> None:
    table = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
    assert list(parse_grid("fp4-bnb", 4).levels) == sorted({*table.tolist(), *(-table).tolist()})


def test_logarithmic_levels() -> None:
    assert parse_grid("log", 3).levels == (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    assert parse_grid("log2", 4) == parse_grid("log", 4)
    float_levels = np.array(parse_grid("e3m0", 4).levels)
    assert parse_grid("log", 4).levels == tuple(float_levels / float_levels.max())
    halves = np.array(parse_grid("logsqrt2", 4).levels)
    np.testing.assert_allclose(halves[8:], 2.0 ** (np.arange(-6, 1) / 2), rtol=1e-15)
    assert parse_grid("log", 8).levels[-127] == 2.0**-126


APOT = {  # terms of a magnitude as the authors' code lists them: powers of 1/2, besides 0
    2: [[1]],
    3: [[1, 2, 3]],
    4: [[1, 2, 4], [3]],
    5: [[1, 3, 5], [2, 4, 6]],
    6: [[1, 3, 6], [2, 4, 7], [5]],
    7: [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
}


@pytest.mark.parametrize("num_bits", APOT)
def test_additive_powers_of_two(num_bits: int) -> None:
    terms = [[0.0, *(2.0**-power for power in powers)] for powers in APOT[num_bits]]
    sums = {sum(chosen) for chosen in itertools.product(*terms)}
    assert len(sums) == 2 ** (num_bits - 1)
    expected = sorted({sign * value / max(sums) for value in sums for sign in (-1, 1)})
    assert list(parse_grid("apot", num_bits).levels) == expected


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_lloyd_levels_are_the_means_of_their_cells(num_bits: int) -> None:
    levels = np.array(parse_grid("lloyd", num_bits).levels)
    assert len(levels) == 2**num_bits
    assert np.array_equal(levels, -levels[::-1])
    edges = np.concatenate([[-math.inf], (levels[1:] + levels[:-1]) / 2, [math.inf]])
    upper, lower = -np.diff(norm.sf(edges)), np.diff(norm.cdf(edges))
    means = -np.diff(norm.pdf(edges)) / np.where(levels > 0, upper, lower)  # each where it is precise
    np.testing.assert_allclose(levels, means, rtol=0, atol=1e-11)


def test_lloyd_levels_that_are_known() -> None:
    assert parse_grid("lloyd", 1).levels[1] == pytest.approx(math.sqrt(2 / math.pi), abs=1e-12)
    # Max 1960, table I: N = 4 and N = 16
    assert parse_grid("lloyd", 2).levels[2:] == pytest.approx((0.4528, 1.510), abs=5e-4)
    assert parse_grid("lloyd", 4).levels[8:] == pytest.approx(
        (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733), abs=6e-4
    )


# Gaussian error


def optimal(num_bits: int, grid: str | tuple[float, ...], kind: str) -> Representation:
    return Representation((Quantize(num_bits, kind, grid=grid, observer="rms"),))  # type: ignore[arg-type]


LLOYD = {  # by quadrature; levels at the means of their cells are the only ones, as the density is log-concave
    1: 0.36338023,
    2: 0.11748185,
    3: 0.03454776,
    4: 9.5010080e-3,
    5: 2.5046684e-3,
    6: 6.4423967e-4,
    7: 1.6347823e-4,
    8: 4.1185083e-5,
}


@pytest.mark.parametrize("num_bits", LLOYD)
def test_lloyd_reaches_the_published_error_at_scale_one(num_bits: int) -> None:
    (bound,) = optimal(num_bits, "lloyd", "float").bound_stages
    assert isinstance(bound, Quantize)
    levels = np.array(bound.levels.levels)
    assert bound.clip == pytest.approx(levels[-1], rel=1e-6)
    assert gmse(optimal(num_bits, "lloyd", "float")).value == pytest.approx(LLOYD[num_bits], rel=1e-7)
    edges = np.concatenate([[-math.inf], (levels[1:] + levels[:-1]) / 2, [math.inf]])
    assert float(cell_error(edges[:-1], edges[1:], levels).sum()) == pytest.approx(LLOYD[num_bits], rel=1e-7)


OTHERS: list[tuple[int, str | tuple[float, ...], str, float | None]] = [
    (1, "binary", "int", 1 - 2 / math.pi),
    (2, "ternary", "int", 0.1901740),
    (4, "nf4", "float", None),
    (3, "nf3", "float", None),
    (4, "fp4-bnb", "float", None),
    (4, "log", "float", 0.0377449895),  # as e3m0
    (5, "logsqrt2", "float", None),
    (4, "apot", "float", None),
    (5, "apot", "float", None),
    (2, "apot", "float", 0.1901740),  # ternary
    (6, "e4m1", "float", None),
    (8, "e3m4", "float", None),
    (8, "e2m5", "float", None),
    (8, "e4m3ieee", "float", None),
    (2, (-1.0, -0.3, 0.2, 1.0), "float", None),
]


@pytest.mark.parametrize(("num_bits", "grid", "kind", "published"), OTHERS, ids=str)
def test_gaussian_error_at_the_best_scale(
    num_bits: int, grid: str | tuple[float, ...], kind: str, published: float | None
) -> None:
    levels = np.array(parse_grid(grid, num_bits).levels)
    error = gmse(optimal(num_bits, grid, kind)).value
    best, scale = dips(levels)[0]
    assert error == pytest.approx(best, rel=1e-7)
    assert error == pytest.approx(integrated(levels * scale, gaussian), rel=1e-7)
    assert published is None or error == pytest.approx(published, rel=3e-7)


# names


def test_parts_of_names_are_no_names() -> None:
    for name in ("e2m1x", "xe2m1", "e8m0", "e0m3", "e2m7", "nf9", "nf1", "log3", "Lloyd", "", "e4m3nan"):
        with pytest.raises(ValueError, match="no grid is called"):
            parse_grid(name, 8)


def test_the_integer_grids() -> None:
    assert INTEGER_GRIDS == ("midrise", "midtread", "twos", "unsigned", "binary", "ternary")
    widths = {"binary": 1, "ternary": 2}
    assert all(isinstance(parse_grid(name, widths.get(name, 4)), IntegerGrid) for name in INTEGER_GRIDS)
    assert {entry.shown for entry in GRIDS if entry.integer} == set(INTEGER_GRIDS)


@pytest.mark.parametrize(
    ("grid", "num_bits", "message"),
    [
        (
            "int4",
            4,
            "no grid is called 'int4'; known are midrise, midtread, twos, unsigned, binary, ternary, floats",
        ),
        ("e3m2", 4, r"grid e3m2 has 6 bits \(sign included\), but num_bits is 4"),
        ("e1m2ieee", 4, "e1m2ieee has no normal number left; use e1m2 or more exponent bits"),
        ("binary", 2, "grid binary needs num_bits: 1, but num_bits is 2"),
        ("ternary", 1, "grid ternary needs num_bits: 2, but num_bits is 1"),
        ("nf4", 3, "grid nf4 needs num_bits: 4, but num_bits is 3"),
        ("nf", 1, "grid nf needs 2 to 8 bits, got 1; use grid: binary"),
        ("log", 1, "a logarithmic grid needs 2 to 8 bits, got 1; use grid: binary"),
        ("apot", 1, "grid apot needs 2 to 8 bits, got 1; use grid: binary"),
        ("fp4-bnb", 8, "grid fp4-bnb needs num_bits: 4, but num_bits is 8"),
        ((), 2, "a grid of 2 bits has 2 to 4 levels, got 0"),
        ((1.0,), 2, "a grid of 2 bits has 2 to 4 levels, got 1"),
        ((-2.0, -1.0, 0.0, 1.0, 2.0), 2, "a grid of 2 bits has 2 to 4 levels, got 5"),
        ((-1.0, 0.5, 0.5), 2, "grid levels must ascend, and differ as float32 numbers; 0.5 follows 0.5"),
        ((-1.0, 0.5, 0.25), 2, "0.25 follows 0.5"),
        ((1.0, 1.0 + 1e-9), 2, "1.000000001 follows 1.0"),
        ((-1.0, math.nan), 2, "grid levels must be finite float32 numbers, got nan"),
        ((-1.0, math.inf), 2, "grid levels must be finite float32 numbers, got inf"),
        ((-1.0, 1e39), 2, r"grid levels must be finite float32 numbers, got 1e\+39"),
    ],
)
def test_grids_that_there_are_not(grid: str | tuple[float, ...], num_bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grid(grid, num_bits)
