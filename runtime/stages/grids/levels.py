"""Levels given one by one: a user's, or those of a published table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .table import TableGrid

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LevelGrid(TableGrid):
    """Arbitrary ascending levels `values`; codes count them from the lowest.

    Under an absmax scale the largest magnitude goes to the level of the largest magnitude.

    Raises:
        ValueError: fewer than two levels, more than 2^bits, or some that do not ascend as float32 numbers.
    """

    values: tuple[float, ...]
    bits: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.values) <= 2**self.bits:
            raise ValueError(
                f"a grid of {self.bits} bits has 2 to {2**self.bits} levels, got {len(self.values)}"
            )
        for value in self.values:
            if not abs(value) <= _LARGEST:
                raise ValueError(f"grid levels must be finite float32 numbers, got {value}")
        rounded = [float(np.float32(value)) for value in self.values]
        for position, (low, high) in enumerate(itertools.pairwise(rounded)):
            if low >= high:
                raise ValueError(
                    f"grid levels must ascend, and differ as float32 numbers; {self.values[position + 1]} "
                    f"follows {self.values[position]}"
                )

    @property
    def levels(self) -> tuple[float, ...]:
        return self.values

    @property
    def absmax_level(self) -> float:
        return max(abs(self.values[0]), abs(self.values[-1]))

    @property
    def level_codes(self) -> Sequence[int]:
        return range(len(self.values))

    @property
    def code_values(self) -> Sequence[float]:
        return (*self.values, *[math.nan] * (2**self.bits - len(self.values)))


def symmetric(magnitudes: Sequence[float], bits: int) -> LevelGrid:
    """Zero and the given ascending positive magnitudes with either sign."""
    return LevelGrid((*(-m for m in reversed(magnitudes)), 0.0, *magnitudes), bits)
