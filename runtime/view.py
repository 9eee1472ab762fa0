"""A projection as estimators see it: what moved, what was kept, and the grid's geometry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .stage import Cell, Fields, Stage


@dataclass(frozen=True)
class View:
    """A projection in the domain after leading rotations. Shapes are the tensor's own.

    What not every estimator needs is computed on first use.
    """

    latent: Tensor
    projected: Tensor  # what the latent tensor became, in the precision of the computation
    steps: tuple[tuple[Stage, Fields], ...]  # the stages after the rotation, and what they kept
    rotated: bool

    @cached_property
    def kept(self) -> Tensor | None:
        """Bool, true where a sparse stage kept a number; None when nothing is sparse."""
        kept: Tensor | None = None
        for stage, fields in reversed(self.steps):
            kept = stage.kept(fields) if kept is None else stage.decode(kept, fields)
        return kept

    @cached_property
    def cell(self) -> Cell | None:
        """The grid's geometry at every number; None when there is no grid."""
        cells = (stage.cell(fields) for stage, fields in self.steps)
        cell = next((cell for cell in cells if cell is not None), None)
        sparse = [(stage, fields) for stage, fields in self.steps if "sparse" in stage.tags]
        return _scatter_cell(sparse, cell) if sparse and cell is not None else cell


def _scatter_cell(sparse: list[tuple[Stage, Fields]], cell: Cell) -> Cell:
    """A survivor's cell at its place; zeroed places take the widest of their row, or else of the tensor."""
    if not cell.half_width.shape or cell.half_width.shape[-1] <= 1:
        return cell  # one for a whole row holds for its zeroed places too
    half_width, outermost = (_spread(sparse, value) for value in (cell.half_width, cell.outermost))
    return Cell(half_width, outermost, cell.num_levels)


def _spread(sparse: list[tuple[Stage, Fields]], value: Tensor) -> Tensor:
    """Survivors' numbers put back in their places; elsewhere the largest of the row, or of the tensor."""
    for stage, fields in reversed(sparse):
        value = stage.decode(value, fields)
    if not value.numel():
        return value
    widest = value.amax(-1, keepdim=True)
    return torch.where(value > 0, value, torch.where(widest > 0, widest, value.amax()))
