"""Clip: the gradient passes inside the grid's range (PACT, 1805.06085, with a scale that is given)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..representation import Representation
from ..view import View
from .base import Estimator, bare
from .levels import levels_of, refusal


@dataclass(frozen=True)
class Clip(Estimator):
    """M = |x| <= factor * outermost level of the grid, in the rotated domain: what is clipped stands still.

    The outermost level is the largest, also of a grid that goes farther down than up. Where there is a zero
    point, numbers pass between the lowest and the highest level, both times the factor. A zeroed number of a
    sparse chain passes if it is no larger than the outermost level of its row; where there is a zero point,
    it passes. `factor` widens the range.
    """

    factor: float = 1.0
    kind: Literal["clip"] = "clip"

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor must be positive, got {self.factor}")

    def check(self, representation: Representation) -> None:
        if not representation.stages:
            return
        if not any(stage.kind == "quantize" for stage in representation.unwrapped):
            raise ValueError(f"'clip' needs a grid, and {representation} has none; use 'ste' or 'banded'")
        if why := refusal(representation):
            raise ValueError(f"'clip' {why}; use 'ste'")

    def trained(self, representation: Representation) -> Representation:
        return bare(representation)

    def mask(self, view: View) -> Tensor | None:
        if view.cell is None:
            return None
        levels = levels_of(view)
        if levels is None or levels.zero is None:
            return view.latent.abs().le_(view.cell.outermost * self.factor)
        lowest, highest = (self.factor * levels.restored(levels.values[end]) for end in (0, -1))
        inside = (lowest <= view.handed) & (view.handed <= highest)
        return view.placed(inside.to(view.latent.dtype), 1.0)
