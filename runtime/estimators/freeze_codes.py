"""Stages of training: a weight trains as ever, then its codes stay and what they stand for is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..representation import Representation
from ..stages.codebook import Codebook
from ..view import View
from .base import Estimator
from .code_fields import CodeFields
from .learned import Learned
from .step_rule import Beside, Stepping, StepRule

if TYPE_CHECKING:
    from ..projection import Project


@dataclass(frozen=True)
class FreezeCodes(StepRule):
    """From a share `begin` of the run on, a weight is its code: codes stay, the floats behind them train.

    Before that the weight trains as the other estimators of the list say (alone: straight-through). Then it
    is encoded, its codes never change again, and it gets no gradient any more: codebooks, factors and scales
    do, as under `fields`. Rules with a `begin` each are the stages of iterative product quantisation (Stock
    et al. 1907.05686; 2004.07320, Sec. 4.2): layer after layer is encoded, while those that follow still
    adapt. The optimiser's memory of the weight is dropped, that of the floats begins anew. At `begin` 1 the
    weight is encoded once the last step is taken. Needs `attach(model, optimizer, steps)`.

    `begin` is where codes are frozen, as a share of the run.
    `refresh` keeps k-means tables between steps until then: they move on from where they are every so many
    steps, and codes are chosen under them in every forward pass. Unset means tables fitted anew every time.
    """

    begin: float = 1.0
    refresh: int | None = None
    kind: Literal["freeze_codes"] = "freeze_codes"

    masks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= 1:
            raise ValueError(f"begin is a share of the run, in [0, 1], got {self.begin}")
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(f"refresh is a number of steps, at least 1, got {self.refresh}")

    def check(self, representation: Representation) -> None:
        try:
            CodeFields().check(representation)
        except ValueError as error:
            raise ValueError(str(error).replace(repr(CodeFields.kind), repr(self.kind), 1)) from None
        if self.refresh is not None and representation.stages and not _keeps_tables(representation):
            raise ValueError(
                f"refresh keeps k-means tables at the end of a chain, and {representation} has none; "
                "leave it out"
            )

    def mask(self, view: View) -> Tensor | None:
        return None

    def is_due(self, step: int, steps: int) -> bool:
        """Whether codes are frozen before the 0-based `step` of a run of `steps`."""
        return step >= self.begin * steps

    def on(
        self, weight: nn.Parameter, projection: Project, optimizer: torch.optim.Optimizer, beside: Beside
    ) -> Stepping:
        from ..code_fields import FreezingProject
        from ..freezing import Freezing  # both know projections, which know estimators

        assert isinstance(projection, FreezingProject)
        return Freezing(weight, projection, optimizer, self, beside)


def freeze_codes_of(estimators: Sequence[Estimator]) -> FreezeCodes | None:
    """The estimator among these that freezes codes, or None.

    Raises:
        ValueError: another one beside it learns steps, or changes the weight around steps too.
    """
    found = [e for e in estimators if isinstance(e, FreezeCodes)]
    own = [e for e in estimators if isinstance(e, StepRule | Learned | CodeFields)]
    if found and len(own) > 1:
        raise ValueError(f"{own[0].kind!r} and {own[1].kind!r} cannot share a weight; leave one out")
    return found[0] if found else None


def _keeps_tables(representation: Representation) -> bool:
    last = representation.stages[-1]
    return isinstance(last, Codebook) and last.source == "kmeans" and last.scope != "network"
