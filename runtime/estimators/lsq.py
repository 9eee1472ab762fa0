"""Learned step size quantisation (LSQ, 1902.08153), and the same with a learned offset (LSQ+, 2004.09576)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..representation import Representation
from ..stages.grids import IntegerGrid
from .learned import Learned


@dataclass(frozen=True)
class Lsq(Learned):
    """Steps s are trained: dR/ds = Q(u) - u inside of the grid, Q(u) outside, with u = x / s (LSQ, Eq. 3).

    The gradient passes inside (Eq. 5). `gradient_scale` false leaves out that the gradient of a step is
    multiplied by 1 / sqrt(count * highest level), count being the numbers that share the step, of inputs the
    features (section 2.2). LSQ starts with the observer `learned`.
    """

    gradient_scale: bool = True
    kind: Literal["lsq"] = "lsq"

    def gradient_factor(self, count: int, top: float) -> float:
        return _factor(count, top) if self.gradient_scale else 1.0


@dataclass(frozen=True)
class LsqPlus(Learned):
    """LSQ with a learned offset b of inputs: R(x) = s Q((x - b) / s) + b, and dR/db = 1 outside, 0 inside.

    All else is as in LSQ (LSQ+, Eqs. 4 and 5). Weights have no offset, and start as LSQ+ does with the
    observer `three_sigma`. Offset and step of inputs start with the range of the first tensor that has the
    least squared error (section 3.2), whatever the observer. `gradient_scale` false leaves out the factor of
    the gradients of steps and offsets.
    """

    gradient_scale: bool = True
    kind: Literal["lsq_plus"] = "lsq_plus"

    moves: ClassVar[bool] = True

    def _refusal(self, representation: Representation) -> str:
        found = super()._refusal(representation)
        if not found and not isinstance(self.grid_of(representation).levels, IntegerGrid):
            return f"moves a grid of integers, and {representation} has another; leave the offset to 'lsq'"
        return found

    def gradient_factor(self, count: int, top: float) -> float:
        return _factor(count, top) if self.gradient_scale else 1.0


def _factor(count: int, top: float) -> float:
    return 1 / math.sqrt(max(count, 1) * top)
