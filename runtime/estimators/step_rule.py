"""Estimators that act beside the optimiser's steps too, and what they leave on a weight to do so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from .base import Estimator

if TYPE_CHECKING:
    from ..projection import Project


class StepRule(Estimator):
    """An estimator of weights that changes them, or their gradients, around the optimiser's steps.

    `step_rules.attach` has it done. A weight under such a rule is a parameter: none that is computed.
    """

    @abstractmethod
    def on(self, weight: nn.Parameter, projection: Project, optimizer: torch.optim.Optimizer) -> Stepping:
        """What does it to one weight. Raises RequestError for a weight that it cannot work on."""


class Stepping(ABC):
    """A rule at work on one weight. Whatever it knows follows from the weight and the step."""

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
