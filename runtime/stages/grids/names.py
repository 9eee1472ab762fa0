"""The grids by name. A new one is a line in `GRIDS`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .base import Grid
from .integer import IntegerGrid
from .levels import LevelGrid
from .lloyd_max import lloyd_max
from .logarithmic import additive_powers_of_two, logarithmic
from .minifloat import FloatGrid, Variant
from .normal_float import bitsandbytes_fp4, normal_float


@dataclass(frozen=True)
class Named:
    """A grid, or a family of them, that a name stands for."""

    pattern: str
    shown: str  # how messages and help call it
    make: Callable[[re.Match[str], int], Grid]  # from the name as matched and the number of bits
    summary: str
    integer: bool = False


def _integers(match: re.Match[str], num_bits: int) -> Grid:
    return IntegerGrid(num_bits, match[0])


def _minifloat(match: re.Match[str], num_bits: int) -> Grid:
    variants: dict[str | None, Variant] = {"fn": "fn", "ieee": "ieee", "fnuz": "fnuz", "all": "all"}
    grid = FloatGrid(int(match[1]), int(match[2]), variants.get(match[3], "ocp"))
    if grid.bits != num_bits:
        raise ValueError(f"grid {match[0]} has {grid.bits} bits (sign included), but num_bits is {num_bits}")
    return grid


def _of_width(bits: int, grid: Callable[[], Grid]) -> Callable[[re.Match[str], int], Grid]:
    """A maker of a grid that exists in one width only."""

    def make(match: re.Match[str], num_bits: int) -> Grid:
        if num_bits != bits:
            raise ValueError(f"grid {match[0]} needs num_bits: {bits}, but num_bits is {num_bits}")
        return grid()

    return make


def _normal_float(match: re.Match[str], num_bits: int) -> Grid:
    if match[1] and int(match[1]) != num_bits:
        raise ValueError(f"grid {match[0]} needs num_bits: {match[1]}, but num_bits is {num_bits}")
    return normal_float(num_bits)


GRIDS = (
    Named("midrise", "midrise", _integers, "k + 1/2, no zero; 2^b levels", True),
    Named("midtread", "midtread", _integers, "integers from -(2^(b-1) - 1) to 2^(b-1) - 1", True),
    Named("twos", "twos", _integers, "two's complement, -2^(b-1) to 2^(b-1) - 1", True),
    Named("unsigned", "unsigned", _integers, "0 to 2^b - 1", True),
    Named("binary", "binary", _of_width(1, lambda: IntegerGrid(1, "midrise")), "the sign, +-1/2", True),
    Named("ternary", "ternary", _of_width(2, lambda: IntegerGrid(2, "midtread")), "-1, 0 and 1", True),
    Named("e([1-7])m([0-6])(fn|ieee|fnuz|all)?", "floats such as e2m1 or e4m3fn", _minifloat, "minifloats"),
    Named("nf([2-8]?)", "nf4", _normal_float, "NormalFloat: quantiles of the normal distribution"),
    Named("fp4-bnb", "fp4-bnb", _of_width(4, bitsandbytes_fp4), "the fp4 table of bitsandbytes"),
    Named("lloyd", "lloyd", lambda match, bits: lloyd_max(bits), "least squared error for Gaussian numbers"),
    Named("log2?", "log", lambda match, bits: logarithmic(bits, 2.0), "zero and powers of two"),
    Named(
        "logsqrt2",
        "logsqrt2",
        lambda match, bits: logarithmic(bits, math.sqrt(2)),
        "zero and powers of the square root of two",
    ),
    Named("apot", "apot", lambda match, bits: additive_powers_of_two(bits), "sums of powers of two"),
)
INTEGER_GRIDS = tuple(grid.shown for grid in GRIDS if grid.integer)


def parse_grid(grid: str | Sequence[float], num_bits: int) -> Grid:
    """The grid of a name in `GRIDS`, or of ascending levels.

    Raises:
        ValueError: an unknown name, one that does not fit `num_bits`, or levels that make no grid.
    """
    if not isinstance(grid, str):
        return LevelGrid(tuple(float(level) for level in grid), num_bits)
    for named in GRIDS:
        if match := re.fullmatch(named.pattern, grid):
            return named.make(match, num_bits)
    known = ", ".join(named.shown for named in GRIDS)
    raise ValueError(f"no grid is called {grid!r}; known are {known}, or a list of levels")
