"""The connections of a sparse weight in training: which are active, and how they are exchanged."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .estimators.rigl import RigL
from .estimators.step_rule import Stepping
from .projection import Project
from .sparsity.select import largest
from .stages.sparsify import Sparsify


@final
class Connections(Stepping):
    """RigL at work on one weight.

    There is no mask to keep: the weight is exactly zero outside of what is active, so the largest magnitudes,
    which the projection keeps, are the active ones. A run that is resumed finds the same.
    """

    def __init__(
        self, weight: nn.Parameter, projection: Project, optimizer: torch.optim.Optimizer, rule: RigL
    ) -> None:
        self.weight, self.projection, self.optimizer, self.rule = weight, projection, optimizer, rule
        self._share = 0.0
        self._active: Tensor | None = None  # of the step that is being taken
        self._hook: RemovableHandle = weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            self._mask_gradient
        )
        with torch.no_grad():
            self._forget(self._mask())

    def at(self, step: int, steps: int) -> None:
        self._share = self.rule.share(step, steps)
        self._active = None

    @torch.no_grad()
    def before(self) -> None:
        active, gradient = self._mask(), self.weight.grad
        if self._share and gradient is not None:
            active = self._exchanged(active, gradient)
        self._forget(active)
        if gradient is not None:
            gradient.masked_fill_(~active, 0)
        self._active = active

    @torch.no_grad()
    def after(self) -> None:
        if self._active is not None:
            self.weight.masked_fill_(~self._active, 0)
        self._active = None

    def detach(self) -> None:
        self._hook.remove()

    @property
    def _stage(self) -> Sparsify:
        """The sparse stage as it is now."""
        stage = self.projection.representation_now.unwrapped[0]
        assert isinstance(stage, Sparsify)  # or the estimator would have refused it
        return stage

    def _mask(self) -> Tensor:
        """What is active, bool as the weight: all that is not zero, where these are as many as are kept."""
        if self._active is None:
            matrix = self._matrix(self.weight)
            stage = self._stage
            active = stage.pattern.spread(stage.choose(matrix.abs()), tuple(matrix.shape))
            self._active = self.projection.arrangement.restore(active, tuple(self.weight.shape))
        return self._active

    def _exchanged(self, active: Tensor, gradient: Tensor) -> Tensor:
        """What is active once the smallest were dropped, and the largest gradients grown."""
        stage, matrix = self._stage, self._matrix(self.weight)
        pattern, shape = stage.pattern, tuple(matrix.shape)
        pools = pattern.pools(shape)
        count = round(self._share * pools.kept)
        was = pattern.scores(self._matrix(active).to(matrix.dtype)).reshape(pools.shape) > 0
        kept = largest(_among(was, pattern.scores(matrix.abs()).reshape(pools.shape)), pools.kept - count)
        wanted = pattern.scores(self._matrix(gradient).abs()).reshape(pools.shape)
        grown = largest(_among(~kept, wanted), count)
        units = (kept | grown).reshape(pools.mask)
        return self.projection.arrangement.restore(pattern.spread(units, shape), tuple(self.weight.shape))

    def _matrix(self, tensor: Tensor) -> Tensor:
        return self.projection.arrangement.matrix(tensor.detach())

    def _forget(self, active: Tensor) -> None:
        """Zero the weight, and what the optimiser remembers of its numbers, where it is not active."""
        gone = ~active
        self.weight.masked_fill_(gone, 0)
        for state in self.optimizer.state.get(self.weight, {}).values():
            if isinstance(state, Tensor) and state.shape == self.weight.shape:
                state.masked_fill_(gone, 0)

    @torch.no_grad()
    def _mask_gradient(self, weight: Tensor) -> None:
        """Leave the gradient of active numbers, so that clipping sees no other; all of it in a step that
        grows some."""
        if not self._share and weight.grad is not None:
            weight.grad.masked_fill_(~self._mask(), 0)


def _among(mask: Tensor, scores: Tensor) -> Tensor:
    """Scores of which none outside the mask is as large as any inside, zeros there included."""
    return torch.where(mask, scores.clamp_min(torch.finfo(scores.dtype).tiny), 0)
