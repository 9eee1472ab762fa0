"""Estimators that act beside the optimiser's steps too, and what they leave on a weight to do so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from .base import Estimator

if TYPE_CHECKING:
    from ..projection import Project


class StepRule(Estimator):
    """An estimator of weights that changes them, or their gradients, around the optimiser's steps.

    `step_rules.attach` has it done. A weight under such a rule is a parameter: none that is computed.
    """

    grows: ClassVar[bool] = False
    """Whether numbers of the weight start anew from zero."""

    @abstractmethod
    def on(
        self, weight: nn.Parameter, projection: Project, optimizer: torch.optim.Optimizer, beside: Beside
    ) -> Stepping:
        """What does it to one weight. Raises RequestError for a weight that it cannot work on."""

    def joined(self, each: Sequence[Stepping]) -> Sequence[Stepping]:
        """What does it to all weights under this rule with one representation: each alone, as a rule."""
        return each


@dataclass(frozen=True)
class Beside:
    """What a model holds beside a weight, by what follows the weight's name and `_`. `path` is the weight's.

    Looked up anew every time: a buffer of a model that is moved is another tensor afterwards.
    """

    model: nn.Module
    path: str

    def __getitem__(self, name: str) -> Tensor:
        owner, _, own = self.path.rpartition(".")
        found = getattr(self.model.get_submodule(owner), f"{own}_{name}")
        assert isinstance(found, Tensor)
        return found


class Stepping(ABC):
    """A rule at work on one weight. Whatever it knows follows from the model's state and the step."""

    @abstractmethod
    def at(self, step: int, steps: int) -> None:
        """The 0-based `step` of a run of `steps` is the one about to be taken."""

    @abstractmethod
    def before(self) -> None:
        """Gradients are complete, and the optimiser's step follows."""

    @abstractmethod
    def after(self) -> None:
        """The optimiser's step is done."""

    @abstractmethod
    def detach(self) -> None:
        """Leave the weight alone from now on."""
