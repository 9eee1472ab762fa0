"""Eigen-cushion: along the directions that inputs have most of, training sees a weight as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from ..view import View
from .base import Estimator
from .step_rule import Beside, Stepping, StepRule

if TYPE_CHECKING:
    from ..projection import Project


@dataclass(frozen=True)
class EigenCushion(StepRule):
    """Training reads R(W) + (W - R(W)) V V^T: along k directions of inputs it does not feel the projection.

    The columns of V are the k leading eigenvectors of H = E[x x^T], the second moments of what the weight is
    multiplied with, so that R(W) x = W x along them. This is an interpretation of BiTAT (2207.01394), of
    which the abstract alone says that weights are disentangled by an input-dependent orthonormal
    transformation and quantised by importance. A weight trains through both terms; whatever masks and
    gradients other estimators have hold for the first. Forms that are not trained hold R(W) and nothing of V.

    `directions` is k; more than there are inputs are all of them. A `schedule` takes it to 0 while the model
    trains; at 0 training is that of the other estimators, bit for bit. On the way the last one counts in
    part: of 2.25 directions two are exact, and a third by a quarter.
    `refresh` is after how many steps H is measured again, on the batch of that step, as the network is then.
    Before its first measurement (by the pass `calibrate_directions`, else in the first step) nothing is
    exact.
    `block` cuts inputs in so many neighbours, between which H is taken to be zero; for thousands of inputs.
    """

    directions: float = 0.0
    refresh: int = 100
    block: int | None = None
    kind: Literal["eigen_cushion"] = "eigen_cushion"

    masks: ClassVar[bool] = False
    apart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.directions < math.inf:
            raise ValueError(f"directions is a number of eigenvectors, at least 0, got {self.directions}")
        if self.refresh < 1:
            raise ValueError(f"refresh is a number of steps, at least 1, got {self.refresh}")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block is a number of inputs, at least 1, got {self.block}")

    def mask(self, view: View) -> Tensor | None:
        return None

    def is_due(self, step: int) -> bool:
        """Whether H is measured in a 0-based step."""
        return step % self.refresh == 0

    def on(self, weight: nn.Parameter, projection: Project, optimizer: object, beside: Beside) -> Stepping:
        from ..cushion import Cushion, Cushioning  # which know projections, which know estimators

        assert isinstance(projection, Cushion)
        return Cushioning(projection, self, beside)


def eigen_cushion_of(estimators: Sequence[Estimator]) -> EigenCushion | None:
    """The estimator among these that keeps directions exact, or None.

    Raises:
        ValueError: there are two, or one beside another that changes the weight around steps.
    """
    found = [e for e in estimators if isinstance(e, EigenCushion)]
    rules = [e for e in estimators if isinstance(e, StepRule)]
    if found and len(rules) > 1:
        raise ValueError(f"{rules[0].kind!r} and {rules[1].kind!r} cannot share a weight; leave one out")
    return found[0] if found else None
