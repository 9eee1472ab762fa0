"""Trust: the gradient passes where a number moved by at most half a cell (QuEST 2502.05003, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..representation import Representation
from ..view import View
from .base import Estimator

OUTER_ROTATED, OUTER_PLAIN = 1.30, 1.25  # QuEST's s* for one bit, with and without a Hadamard rotation


@dataclass(frozen=True)
class Trust(Estimator):
    """M = |R(x) - x| <= factor * T, with T half the grid's widest cell, in the rotated domain.

    A grid of two levels has no inner cell, so its outer region is bounded instead: |x| <= s * level with
    s = 1.30 after a rotation and 1.25 without. A zeroed number of a sparse chain passes if it lies within T
    of zero.
    """

    factor: float = 1.0
    kind: Literal["trust"] = "trust"

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"factor must be positive, got {self.factor}")

    def check(self, representation: Representation) -> None:
        if representation.stages and not any(stage.kind == "quantize" for stage in representation.unwrapped):
            raise ValueError(f"'trust' needs a grid, and {representation} has none; use 'ste' or 'banded'")

    def mask(self, view: View) -> Tensor | None:
        if view.cell is None:
            return None
        if view.cell.num_levels == 2:
            outer = OUTER_ROTATED if view.rotated else OUTER_PLAIN
            return view.latent.abs().le_(view.cell.outermost * (outer * self.factor))
        return (view.projected - view.latent).abs_().le_(view.cell.half_width * self.factor)
