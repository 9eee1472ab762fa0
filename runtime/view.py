"""A projection as estimators see it: what moved, what was kept, and the grid's geometry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .stage import Cell, Fields, Sphere, Stage


@dataclass(frozen=True)
class View:
    """A projection in the domain after leading rotations. Shapes are the tensor's own.

    What not every estimator needs is computed on first use.
    """

    latent: Tensor
    projected: Tensor  # what the latent tensor became, in the precision of the computation
    steps: tuple[tuple[Stage, Fields], ...]  # the stages after the rotation, and what they kept
    rotated: bool

    def replaced(self, projected: Tensor) -> View:
        """The same with something else in the place of what was projected."""
        return replace(self, projected=projected)

    @cached_property
    def kept(self) -> Tensor | None:
        """Bool, true where a sparse stage kept a number; None when nothing is sparse."""
        kept: Tensor | None = None
        for stage, fields in reversed(self.steps):
            if kept is None:
                kept = stage.kept(fields)
            elif "elementwise" not in stage.tags:
                kept = stage.decode(kept, fields)
        return kept

    @cached_property
    def cell(self) -> Cell | None:
        """The grid's geometry at every number; None when there is no grid."""
        cells = ((i, stage.cell(fields)) for i, (stage, fields) in enumerate(self.steps))
        position, cell = next(((i, cell) for i, cell in cells if cell is not None), (0, None))
        if cell is None:
            return None
        before, rows = self.steps[:position], self.latent.shape[:-1]
        half_width, outermost = (_placed(before, size, rows) for size in (cell.half_width, cell.outermost))
        return Cell(half_width, outermost, cell.num_levels)

    @cached_property
    def handed(self) -> Tensor:
        """What the last stage was handed: those before it encode once more, which few estimators need."""
        carry = self.latent
        for stage, _ in self.steps[:-1]:
            carry, _ = stage.hand_on(carry)
        return carry

    @cached_property
    def sphere(self) -> Sphere | None:
        """The geometry of the vectors in what the last stage was handed; None where it has none."""
        if not self.steps:
            return None
        stage, fields = self.steps[-1]
        return stage.sphere(fields, self.handed)

    def placed(self, numbers: Tensor, elsewhere: float) -> Tensor:
        """Numbers of the shape of `handed` at their places in the tensor; `elsewhere` where none was kept.

        Nothing but places counts: scales that are divided out on the way are not multiplied in again.
        """
        for stage, fields in reversed(self.steps[:-1]):
            if "sparse" in stage.tags:
                numbers = stage.decode(numbers, fields)
        return numbers if self.kept is None else torch.where(self.kept, numbers, elsewhere)


def _placed(steps: tuple[tuple[Stage, Fields], ...], size: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Sizes of cells as these stages decode them: scaled back, and those of survivors at their places.

    Zeroed places take the widest of their row, or else of the tensor. One size for a whole row holds for its
    zeroed places too.
    """
    scattered = False
    for stage, fields in reversed(steps):
        each_row = size.shape[-1:] == (1,) and (size.numel() == 1 or size.shape[:-1] == rows)
        if "sparse" in stage.tags and size.shape and not each_row:
            size, scattered = stage.decode(size, fields), True
        elif "elementwise" in stage.tags:
            size = stage.decode(size, fields)
    if not scattered or not size.numel():
        return size
    widest = size.amax(-1, keepdim=True)
    return torch.where(size > 0, size, torch.where(widest > 0, widest, size.amax()))
