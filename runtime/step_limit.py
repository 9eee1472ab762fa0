"""A bound on how far one optimiser step may move a weight, in widths of its grid's cells.

Weights whose projection is piecewise constant swing to and fro over a cell's border when a step is as large
as the cell. The bound is the optimiser's trust region: another thing than the `trust` estimator, which masks
gradients.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import RequestError
from .gridded import Gridded, gridded


@final
class StepLimit:
    """Scales the step d of each weight by min(1, limit * c / rms(d)), with c the mean width of its cells.

    The step is all that happens to the weight in it, decay included; c is that of the weight before it. Where
    the weight is a function of what is trained (a latent), d and c are those of the weight. Weights without a
    grid, and those that are all zeros, are not limited. Works in any loop:

        StepLimit(model, 0.25).attach(optimizer)

    Raises RequestError when `limit` is not positive, or no weight of the model has a grid.
    """

    def __init__(self, model: nn.Module, limit: float) -> None:
        if not limit > 0:
            raise RequestError(f"a limit must be positive, got {limit}", where="step_limit")
        self.limit = limit
        self._weights = list(gridded(model))
        self._before: list[tuple[Gridded, Tensor, Tensor]] = []
        if not self._weights:
            raise RequestError(
                "no weight of the model is projected to a grid, so there is no cell to measure steps in",
                where="step_limit",
                advice="leave step_limit out, or give the trainable form of a spec that quantises weights",
            )

    def attach(self, optimizer: torch.optim.Optimizer) -> tuple[RemovableHandle, RemovableHandle]:
        """Limit every step of `optimizer` from now on, until both handles are removed."""
        return optimizer.register_step_pre_hook(self._remember), optimizer.register_step_post_hook(
            self._scale
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        self._before = []
        for weight in self._weights:
            width = weight.cell_width() if weight.parameter.grad is not None else None
            if width is not None:
                old = weight.parameter.detach().clone()
                most = torch.where(old.any(), self.limit * width, torch.inf)  # zeros have no scale to go by
                self._before.append((weight, old, most))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        for weight, old, most in self._before:
            new = weight.parameter
            moved = (weight.matrix(new) - weight.matrix(old)).double().square().mean().sqrt()
            kept = most / moved
            new.copy_(torch.where(kept < 1, old + (new - old) * kept.to(old.dtype), new))
        self._before = []
