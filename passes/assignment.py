"""What one weight becomes, as plain data, and where a graph keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from ..runtime.estimators.base import Estimator
from ..runtime.representation import Representation

_KEY = "rhoc"


@dataclass(frozen=True)
class Assignment:
    """The representation of a weight and of its operation's inputs, and how gradients pass the two."""

    weight: Representation = field(default_factory=Representation)
    input: Representation = field(default_factory=Representation)
    weight_estimators: tuple[Estimator, ...] = ()
    input_estimators: tuple[Estimator, ...] = ()

    @property
    def is_dense(self) -> bool:
        """Whether weight and inputs both stay as they are."""
        return self.weight.is_dense and self.input.is_dense

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
