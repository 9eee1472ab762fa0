"""Scales that are powers of two: the shared exponents of the OCP microscaling formats, rule by rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...gaussian import Array
from ..grids import FloatGrid, Grid, IntegerGrid
from .base import OfMaximum, Rule, Setting, by_rows, exponent_of
from .statistics import largest

_LEAST, _MOST = -127, 127  # exponents of e8m0


@dataclass(frozen=True)
class PowerRule(Rule):
    """X = 2^e from the largest magnitude M of a block (OCP MX 1.0; conventions of the Gaussian error tables).

    `floor` (the specification's): floor(log2 M) - emax, which may saturate. `even`: M is first rounded, half
    up, to the mantissa bits of the elements. `ceil`: ceil(log2 M) - emax. `rceil`: ceil(log2(M / max)), which
    never saturates. `round`: round(log2 M) - emax. `roundmax`: round(log2(M / max)). `three_quarters`: as
    `floor`, with levels 4/3 as far apart (Quartet 2505.14669: 3/4 of the tensor never saturates e2m1). emax
    is the exponent of the largest element, max; elements of an integer grid are multiples of 2^(2 - b), so
    that int8 is MXINT8's k / 64 and emax is 0.
    """

    variant: str
    power_of_two: ClassVar[bool] = True

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        maximum = by_rows(largest, blocks)
        return torch.ldexp(torch.ones_like(maximum), self._exponent(maximum, setting))

    def unit(self, grid: Grid) -> float:
        unit = 2.0 ** (2 - grid.bits) if isinstance(grid, IntegerGrid) and grid.bits > 1 else 1.0
        return unit * 4 / 3 if self.variant == "three_quarters" else unit

    def of_maximum(self, setting: Setting) -> OfMaximum:
        unit = self.unit(setting.grid)

        def scale(maximum: Array) -> Array:
            exponent = self._exponent(torch.from_numpy(maximum), setting).numpy()
            return np.asarray(unit * np.exp2(exponent.astype(np.float64)))

        return OfMaximum(scale, breaks=(self.border(setting)[0],))

    def refusal(self, setting: Setting) -> str | None:
        if self.variant == "even" and not isinstance(setting.grid, FloatGrid | IntegerGrid):
            return "observer 'mx_even' needs a grid with mantissa bits: integers or floats"
        return None

    def _exponent(self, maximum: Tensor, setting: Setting) -> Tensor:
        """e of each maximum: one more from every t 2^k on, where t is the rule's border in [1, 2)."""
        border, offset, from_above = self.border(setting)
        fraction, exponent = torch.frexp(maximum)  # M = fraction * 2^exponent, fraction in [1/2, 1)
        doubled = fraction * 2
        reached = doubled > border if from_above else doubled >= border
        found = exponent - 2 + reached.to(exponent.dtype) + offset
        return torch.where(maximum > 0, found, _LEAST).clamp(_LEAST, _MOST)

    def border(self, setting: Setting) -> tuple[float, int, bool]:
        """The border t of a maximum M, the exponent of M = t, and whether M = t belongs to what is below."""
        top = setting.top * self._plain_unit(setting.grid)
        emax = exponent_of(top)
        mantissa = top / 2.0**emax
        if self.variant in ("floor", "three_quarters"):
            return 1.0, -emax, False
        if self.variant == "even":
            return 2 - 2.0 ** -(_mantissa_bits(setting.grid) + 1), 1 - emax, False
        if self.variant == "ceil":
            return 1.0, 1 - emax, True
        if self.variant == "rceil":
            return mantissa, 1 - emax, True
        if self.variant == "round":
            return math.sqrt(2), 1 - emax, False
        halfway = mantissa * math.sqrt(2)  # roundmax
        return (halfway, 1 - emax, False) if halfway < 2 else (halfway / 2, -emax, False)

    def _plain_unit(self, grid: Grid) -> float:
        return self.unit(grid) * (3 / 4 if self.variant == "three_quarters" else 1.0)


def _mantissa_bits(grid: Grid) -> int:
    return grid.mantissa_bits if isinstance(grid, FloatGrid) else grid.bits - 2
