"""What one weight and the tensors around its operations become, as plain data, and where a graph keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from ..runtime.arrangement import PLAIN, Arrangement
from ..runtime.code import Code
from ..runtime.estimators.base import Estimator
from ..runtime.representation import Representation
from ..runtime.slots import Slots

_KEY = "rhoc"


@dataclass(frozen=True)
class Assignment:
    """The representations of a weight and of its operation's inputs, outputs and output gradients, and how
    gradients pass them. `arrangement` is how stages see the weight: as the matrix that its operation reads.
    `code` is the weight's where calibration chose it, of that matrix; else encoding finds it."""

    weight: Representation = field(default_factory=Representation)
    input: Representation = field(default_factory=Representation)
    weight_estimators: tuple[Estimator, ...] = ()
    input_estimators: tuple[Estimator, ...] = ()
    output: Representation = field(default_factory=Representation)
    output_estimators: tuple[Estimator, ...] = ()
    grad_output: Representation = field(default_factory=Representation)
    arrangement: Arrangement = PLAIN
    code: Code | None = field(default=None, compare=False, repr=False)

    @property
    def is_dense(self) -> bool:
        """Whether everything stays as it is."""
        return self.weight.is_dense and self.slots.is_dense

    @property
    def slots(self) -> Slots:
        """What becomes of the tensors around the operation."""
        return Slots(self.input, self.input_estimators, self.output, self.output_estimators, self.grad_output)

    @property
    def shared_rotation(self) -> Representation:
        """The rotation that weight and inputs both begin with; dense when they differ."""
        rotation = self.weight.rotation
        return rotation if rotation == self.input.rotation else Representation()


DENSE = Assignment()


def assign(weight: fx.Node, assignment: Assignment) -> None:
    """Record the assignment on the node that reads a weight."""
    weight.meta[_KEY] = assignment


def assigned(weight: object) -> Assignment | None:
    """The assignment recorded on the node that reads a weight; None where there is none."""
    found = weight.meta.get(_KEY) if isinstance(weight, fx.Node) else None
    return found if isinstance(found, Assignment) else None
