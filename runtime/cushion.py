"""Weights that training sees as they are along the leading directions of their inputs."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from .errors import RequestError
from .estimators.base import Estimator
from .estimators.eigen_cushion import EigenCushion, eigen_cushion_of
from .estimators.step_rule import Beside, Stepping
from .input_grams import InputGram, leading_directions
from .learned import LearnedProject
from .projection import Project
from .representation import Representation
from .schedule import Address
from .stages.precision import wide

DIRECTIONS = "input_directions"
"""What follows the name of a weight, and `_`, in the name of the directions of its inputs."""


class Cushion(Project):
    """A projection beside a cushion; see `estimators.eigen_cushion.EigenCushion`.

    It is called with the weight and the directions beside it `[..., in, count]`, zeros where these are not
    known. `watches` see the inputs of the operations that read what it gives.
    """

    def __init__(
        self, representation: Representation, estimators: tuple[Estimator, ...], **options: Any
    ) -> None:
        super().__init__(representation, estimators, **options)
        rule = eigen_cushion_of(estimators)
        assert rule is not None
        self.rule = rule
        self.watches: tuple[InputGram, ...] = ()
        # Which of the schedules is that of the directions; an attribute, which torch.compile need not trace.
        self.place: int | None = None
        own = Address(in_estimator=True, position=estimators.index(rule), name="directions")
        for place, schedule in enumerate(self.program.schedules):
            if schedule.address == own:
                self.place = place

    def forward(self, x: Tensor, directions: Tensor, *learned: Tensor) -> Tensor:  # type: ignore[override]
        """The projection of `x` in all but the first `count` directions, and `x` in these."""
        projected: Tensor = super().forward(x, *learned)
        if not (self.training and torch.is_grad_enabled()):
            return projected
        count = self.count
        if not torch.compiler.is_compiling() and not bool(count):
            return projected
        weight = self.arrangement.matrix(x if self.latent is None else self.latent.weight(x))
        matrix = self.arrangement.matrix(projected)
        own = wide(matrix.dtype)
        share = (count - torch.arange(directions.shape[-1], device=x.device)).clamp(0, 1).to(own)
        error = weight.to(own) - matrix.to(own)
        seen = matrix + ((error @ (directions.to(own) * share)) @ directions.to(own).mT).to(matrix.dtype)
        return self.arrangement.restore(seen, tuple(x.shape))

    @property
    def count(self) -> Tensor:
        """How many directions are exact now."""
        declared = self.rule.directions
        if self.place is None:
            return torch.tensor(declared, dtype=torch.float64)
        return self.values[self.place].nan_to_num(declared)

    @property
    def most(self) -> int:
        """How many are, at most, over a training."""
        start = 0.0 if self.place is None else self.program.schedules[self.place].start
        return math.ceil(max(self.rule.directions, start))


@final
class CushionLearned(Cushion, LearnedProject):  # type: ignore[misc]
    """The same where the steps of the projection are learned."""


@final
class Cushioning(Stepping):
    """`EigenCushion` at work on one weight: all that it knows are the directions beside the weight, and which
    step it is, so that a run that is resumed finds the same."""

    def __init__(self, projection: Cushion, rule: EigenCushion, beside: Beside) -> None:
        if not projection.watches:
            raise RequestError(
                f"{rule.kind!r} measures inputs of weights, and what reads this one is in no graph, or is no "
                "product with rows of them",
                where=beside.path,
                advice="leave it out with `ignore`, or give it another estimator",
            )
        self.projection, self.rule, self.beside = projection, rule, beside

    def at(self, step: int, steps: int) -> None:
        wanted = bool(self.projection.count) and self.rule.is_due(step)
        if wanted and step == 0:
            wanted = not bool(self.beside[DIRECTIONS].any())  # calibration has measured them
        for watch in self.projection.watches:
            watch.watch(wanted)

    @torch.no_grad()
    def before(self) -> None:
        found = [watch.total for watch in self.projection.watches if watch.total is not None]
        if not found:  # the weight took no part in this step
            return
        moments = torch.stack(found).sum(0)
        directions = self.beside[DIRECTIONS]
        if bool(torch.isfinite(moments).all()):
            directions.copy_(leading_directions(moments, *directions.shape[-2:]))

    def after(self) -> None:
        return

    def detach(self) -> None:
        for watch in self.projection.watches:
            watch.watch(False)
