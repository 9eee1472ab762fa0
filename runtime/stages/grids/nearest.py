"""The code of the nearest level, exactly, by table.

A float32 number's upper sixteen bits (sign, exponent, seven bits of fraction) name an interval. Where no
interval holds more than one border between two levels, two look-ups and one comparison find the code,
however many levels there are; otherwise, and for float64, it is a binary search.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pieces import mapped

Array = NDArray[np.floating[Any]]

_KINDS: dict[torch.dtype, type[np.float32] | type[np.float64]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}


@dataclass(frozen=True)
class Intervals:
    """What each of the 65,536 intervals of float32 numbers needs to know."""

    border: Tensor  # the border inside the interval, or the first one above it
    lower: Tensor  # the code up to the border
    upper: Tensor  # the code above it

    def encode(self, x: Tensor) -> Tensor:
        """Codes of float32 numbers."""
        return mapped(x, torch.uint8, self._encode)

    def _encode(self, x: Tensor, out: Tensor) -> None:
        interval = (x.view(torch.int32) >> 16).bitwise_and_(0xFFFF)
        above = x > self.border.index_select(0, interval)
        lower, upper = self.lower.index_select(0, interval), self.upper.index_select(0, interval)
        torch.where(above, upper, lower, out=out)


@dataclass(frozen=True)
class Search:
    """Binary search among the borders."""

    borders: Tensor
    codes: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Codes of numbers of the borders' dtype."""
        return mapped(x, torch.uint8, self._encode)

    def _encode(self, x: Tensor, out: Tensor) -> None:
        rank = torch.bucketize(x, self.borders, out_int32=True)
        out.copy_(self.codes.index_select(0, rank))


def nearest(
    levels: Sequence[float], codes: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Intervals | Search:
    """What finds the code of the nearest level for numbers of a dtype (float32 or float64).

    `levels` ascend and are taken as the dtype rounds them; `codes` are theirs. A number halfway between two
    levels goes to the even code, or to the lower level when both are even or odd.
    """
    found = borders(levels, codes, dtype)
    table = torch.tensor(codes, dtype=torch.uint8)
    search = Search(torch.from_numpy(found).to(device), table.to(device))
    return (_intervals(found, table, device) or search) if dtype == torch.float32 else search


def borders(levels: Sequence[float], codes: Sequence[int], dtype: torch.dtype) -> Array:
    """For each pair of neighbours the largest number of the dtype that goes to the lower one."""
    kind = _KINDS[dtype]
    values = [Fraction(float(kind(level))) for level in levels]
    found = np.empty(len(values) - 1, dtype=kind)
    for i, (low, high) in enumerate(itertools.pairwise(values)):
        middle = (low + high) / 2
        border = kind(float(middle))
        tie_goes_up = Fraction(float(border)) == middle and codes[i] % 2 == 1 and codes[i + 1] % 2 == 0
        if tie_goes_up or Fraction(float(border)) > middle:
            border = np.nextafter(border, kind(-np.inf))
        found[i] = border
    return found


def _intervals(borders: Array, codes: Tensor, device: torch.device) -> Intervals | None:
    """The tables of the intervals; None when one of them holds two borders."""
    first = np.arange(1 << 16, dtype=np.uint32) << 16
    ends = np.stack([first, first | 0xFFFF]).view(np.float32)
    ends = np.where(np.isnan(ends), ends[0], ends)  # infinity shares its interval with NaN
    low, high = (np.nan_to_num(end, nan=0.0, posinf=np.inf, neginf=-np.inf) for end in np.sort(ends, axis=0))
    start, stop = np.searchsorted(borders, low), np.searchsorted(borders, high)
    if (stop - start).max() > 1:
        return None
    next_border = np.append(borders, np.float32(np.inf))[start]
    next_rank = np.minimum(start + 1, len(codes) - 1)
    lower, upper = (codes[torch.from_numpy(rank)].to(device) for rank in (start, next_rank))
    return Intervals(torch.from_numpy(next_border).to(device), lower, upper)
