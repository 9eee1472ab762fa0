"""What one weight and the tensors around its operations become, as plain data, and where a graph keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import fx

from ..runtime.arrangement import PLAIN, Arrangement
from ..runtime.code import Code
from ..runtime.estimators.base import Estimator
from ..runtime.latents.base import Latent
from ..runtime.projection import Project
from ..runtime.representation import Representation
from ..runtime.schedule import Schedule
from ..runtime.slots import Slots

_KEY = "rhoc"


@dataclass(frozen=True)
class Assignment:
    """The representations of a weight and of its operation's inputs, outputs and output gradients, and how
    gradients pass them. `arrangement` is how stages see the weight: as the matrix that its operation reads.
    `latent` is what the weight is trained as. `schedules` are those of all slots, with full addresses.
    `code` is the weight's where calibration chose it, of that matrix; else encoding finds it."""

    weight: Representation = field(default_factory=Representation)
    input: Representation = field(default_factory=Representation)
    weight_estimators: tuple[Estimator, ...] = ()
    input_estimators: tuple[Estimator, ...] = ()
    output: Representation = field(default_factory=Representation)
    output_estimators: tuple[Estimator, ...] = ()
    grad_output: Representation = field(default_factory=Representation)
    arrangement: Arrangement = PLAIN
    latent: Latent | None = None
    schedules: tuple[Schedule, ...] = ()
    code: Code | None = field(default=None, compare=False, repr=False)

    @property
    def is_dense(self) -> bool:
        """Whether everything stays as it is."""
        return self.weight.is_dense and self.slots.is_dense and self.latent is None

    def scheduled(self, slot: str) -> tuple[Schedule, ...]:
        """The schedules of one slot of a rule, with their addresses inside it."""
        found = []
        for schedule in self.schedules:
            for prefix, inside in ((f"{slot}.", ""), (f"estimator.{slot}.", "estimator.")):
                if schedule.field.startswith(prefix):
                    found.append(replace(schedule, field=inside + schedule.field[len(prefix) :]))
        return tuple(found)

    def project_weight(self, path: str, *, keep_rotated: bool = False) -> Project:
        """The projection of the weight at a path of the module that reads it."""
        return Project(
            self.weight,
            self.weight_estimators,
            keep_rotated=keep_rotated,
            arrangement=self.arrangement,
            latent=self.latent,
            schedules=self.scheduled("weights"),
            path=path,
        )

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
