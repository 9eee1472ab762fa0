"""The contract of a scale rule: how a scale follows from the numbers that share it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...determinism import one_thread
from ...gaussian import Array, Source
from ...stage import Fields
from ..grids import Grid
from .storage import Storage

CHUNK = 1 << 17  # numbers worked on at once: what stays in a core's cache


@dataclass(frozen=True)
class Setting:
    """What a rule is told beside the numbers: the grid, and the options that belong to rules."""

    grid: Grid
    absmax_level: float
    clip: float | None = None
    percentile: float | None = None
    power_of_two: bool = False

    @property
    def top(self) -> float:
        """The largest level."""
        return self.grid.levels[-1]


@dataclass(frozen=True)
class OfMaximum:
    """A scale that is a function of the largest magnitude alone, as quadrature over that maximum needs it."""

    scale: Callable[[Array], Array]
    breaks: tuple[float, ...] = ()  # where the function jumps, in the octave from 1 to 2; the same in others
    signs: tuple[float, ...] = (1.0, -1.0)  # signs of the largest number that are told apart, equally likely


class Rule(ABC):
    """A scale for each row of a matrix of numbers. Rows are never padded and never empty."""

    power_of_two: ClassVar[bool] = False
    """Whether scales are powers of two, but for `unit`."""

    signed: ClassVar[bool] = False
    """Whether scales may be negative."""

    corrects: ClassVar[bool] = False
    """Whether scales change once more after numbers were rounded under them; see `correction`."""

    random: ClassVar[bool] = False
    """Whether scales are rounded at random under a seed."""

    @abstractmethod
    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        """Scales `[m, 1]` of blocks `[m, k]`; `importance` `[m, k]` weighs errors where some are compared."""

    def alternative(self, blocks: Tensor, scale: Tensor, setting: Setting) -> Tensor | None:
        """Other scales that may turn out better once both are rounded as they are stored; None for none."""
        return None

    def stored(self, scale: Tensor, storage: Storage, own: torch.dtype) -> Fields:
        """The fields of scales of a tensor of dtype `own`."""
        return storage.store(scale, own)

    def correction(self, blocks: Tensor, projected: Tensor) -> Tensor:
        """What to multiply scales with `[m, 1]`, from numbers and what they were rounded to `[m, k]`."""
        return torch.ones_like(blocks[:, :1])

    def corrected(self, fields: Fields, factor: Tensor, generator: torch.Generator | None) -> Fields:
        """Fields of scales, times factors of the shape of the scales."""
        return fields

    def unit(self, grid: Grid) -> float:
        """What a stored scale is multiplied by: the distance of levels is scale times unit."""
        return 1.0

    def limit(self, setting: Setting, source: Source) -> float | None:
        """The scale of infinitely many Gaussian numbers; None where there is none, or it is not known."""
        return None

    def of_maximum(self, setting: Setting) -> OfMaximum | None:
        """The rule as a function of the largest magnitude; None when it looks at more."""
        return None

    def refusal(self, setting: Setting) -> str | None:
        """Why this rule cannot serve a grid; None when it can."""
        return None


def by_rows(function: Callable[..., Tensor], blocks: Tensor, *others: Tensor | None) -> Tensor:
    """`function` of some rows at a time, so that what it makes stays in cache; results are stacked."""
    rows, columns = blocks.shape
    step = max(1, CHUNK // max(columns, 1))
    if rows <= step or not blocks.is_cpu:
        return function(blocks, *others)
    out: Tensor | None = None
    with one_thread():
        for start in range(0, rows, step):
            part = slice(start, start + step)
            result = function(blocks[part], *(None if other is None else other[part] for other in others))
            out = result.new_empty(rows, *result.shape[1:]) if out is None else out
            out[part] = result
    assert out is not None
    return out


def mean_magnitude(source: Source) -> float:
    """E|x| of Gaussian survivors."""
    return source.expectation(np.abs, np.zeros(1)) / source.mass


def exponent_of(value: float) -> int:
    """floor(log2 value), exactly."""
    return math.frexp(value)[1] - 1
