"""What one weight and the tensors around its operations become, as plain data, and where a graph keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx

from ..runtime.arrangement import PLAIN, Arrangement
from ..runtime.bank import Bank, Rows
from ..runtime.banked import BankedProject
from ..runtime.code import Code
from ..runtime.code_fields import FROZEN, FieldsProject, FreezingProject, field_names, trains_fields
from ..runtime.codec import Codec
from ..runtime.cushion import DIRECTIONS, Cushion, CushionLearned
from ..runtime.estimators.base import Estimator
from ..runtime.estimators.code_fields import CodeFields
from ..runtime.estimators.eigen_cushion import EigenCushion, eigen_cushion_of
from ..runtime.estimators.fix_values import beside_names
from ..runtime.estimators.freeze_codes import FreezeCodes
from ..runtime.estimators.learned import Learned
from ..runtime.gradient import Backward
from ..runtime.latents.base import Latent
from ..runtime.learned import LearnedProject, input_names, learns, weight_names
from ..runtime.program import Program
from ..runtime.projection import Project
from ..runtime.representation import Representation
from ..runtime.schedule import Schedule
from ..runtime.slots import Slots
from ..runtime.table_projection import TableProject, table_names
from ..runtime.uncertain import UncertainProject
from ..runtime.vector_levels import levels_of

_KEY = "rhoc"


@dataclass(frozen=True)
class Assignment:
    """The representations of a weight, of its operation's inputs and outputs and of what its backward pass
    reads, and how gradients pass them. `arrangement` is how stages see the weight: as the matrix that its
    operation reads. `latent` is what the weight is trained as. `schedules` are those of all slots, with full
    addresses. `code` is the weight's where calibration chose it, of that matrix; else encoding finds it.
    `bank` has an index choose the steps of inputs, `measured` are steps and offsets of inputs (none where
    these have none) as calibration found them, and `rows` those of a bank once they are given. `directions`
    are those that inputs have most of, as calibration found them. `codec` has the tables that outputs are
    encoded with once they are given."""

    weight: Representation = field(default_factory=Representation)
    input: Representation = field(default_factory=Representation)
    weight_estimators: tuple[Estimator, ...] = ()
    input_estimators: tuple[Estimator, ...] = ()
    output: Representation = field(default_factory=Representation)
    output_estimators: tuple[Estimator, ...] = ()
    backward: Backward = field(default_factory=Backward)
    arrangement: Arrangement = PLAIN
    latent: Latent | None = None
    schedules: tuple[Schedule, ...] = ()
    code: Code | None = field(default=None, compare=False, repr=False)
    bank: Bank | None = None
    measured: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    rows: Rows | None = None
    directions: Tensor | None = field(default=None, compare=False, repr=False)
    codec: Codec | None = None

    @property
    def is_dense(self) -> bool:
        """Whether everything stays as it is."""
        return self.weight.is_dense and self.slots.is_dense and self.latent is None

    def scheduled(self, slot: str) -> tuple[Schedule, ...]:
        """The schedules of one slot of a rule, with their addresses inside it; none where it is dense."""
        if self._filled(slot)[0].is_dense:
            return ()
        return tuple(local for s in self.schedules if (local := s.inside(slot)) is not None)

    def passed(self, slot: str) -> tuple[Representation, ...]:
        """What the representation of a slot of a rule is over a training, the declared one last; none where
        it is dense."""
        representation, estimators = self._filled(slot)
        if representation.is_dense:
            return ()
        return (*Program(representation, estimators, self.scheduled(slot)).passed(), representation)

    def _filled(self, slot: str) -> tuple[Representation, tuple[Estimator, ...]]:
        return {
            "weights": (self.weight, self.weight_estimators),
            "input_activations": (self.input, self.input_estimators),
            "output_activations": (self.output, self.output_estimators),
        }[slot]

    def project_weight(self, path: str, *, keep_rotated: bool = False) -> Project:
        """The projection of the weight at a path of the module that reads it."""
        make = Project if self.learned_weight is None else LearnedProject
        if self.cushion is not None:
            make = Cushion if self.learned_weight is None else CushionLearned
        if self.code_fields is not None:
            make = FreezingProject if self._freezes else FieldsProject
        if self.uncertain:
            make = UncertainProject
        return make(
            self.weight,
            self.weight_estimators,
            keep_rotated=keep_rotated,
            arrangement=self.arrangement,
            latent=self.latent,
            schedules=self.scheduled("weights"),
            path=path,
        )

    def project_input(self, dimension: int, *, keep_rotated: bool = False) -> Project:
        """The projection of an input along a dimension counted from the end, whose steps are not learned."""
        return Project(
            self.input,
            self.input_estimators,
            keep_rotated=keep_rotated,
            schedules=self.scheduled("input_activations"),
            dimension=dimension,
        )

    def project_learned_input(self, dimension: int = -1, *, keep_rotated: bool = False) -> LearnedProject:
        """The same where its steps are learned."""
        schedules = self.scheduled("input_activations")
        if self.bank is not None:
            return BankedProject(self.bank, self.input, self.input_estimators, schedules=schedules)
        return LearnedProject(
            self.input,
            self.input_estimators,
            keep_rotated=keep_rotated,
            schedules=schedules,
            dimension=dimension,
            starts=True,
        )

    @property
    def learned_weight(self) -> Learned | None:
        """What learns the steps of the weight, or None."""
        return learns(self.weight, self.weight_estimators)

    @property
    def cushion(self) -> EigenCushion | None:
        """What keeps directions of inputs exact in training, or None."""
        return None if self.weight.is_dense else eigen_cushion_of(self.weight_estimators)

    @property
    def code_fields(self) -> CodeFields | FreezeCodes | None:
        """What trains the fields of the weight's code, or None."""
        return trains_fields(self.weight, self.weight_estimators)

    @property
    def uncertain(self) -> tuple[str, ...]:
        """What Gaussian weights, and such that are fixed in rounds, keep beside them; nothing of others."""
        return () if self.weight.is_dense else beside_names(self.weight_estimators)

    @property
    def _freezes(self) -> bool:
        """Whether the weight trains first, and its fields later."""
        return isinstance(self.code_fields, FreezeCodes)

    def beside(self, weight: Tensor) -> tuple[str, ...]:
        """What follows the name of the weight, and `_`, in the names of what its projection reads besides."""
        if self.uncertain:
            return self.uncertain
        if self.code_fields is None:
            names = weight_names(self.learned_weight)
            return names if self.cushion is None else (DIRECTIONS, *names)
        shape = self.arrangement.shape(tuple(weight.shape))
        names = tuple(field_names(self.weight, shape, weight.dtype).values())
        return (*names, FROZEN) if self._freezes else names

    @property
    def learned_input(self) -> Learned | None:
        """What learns the step of the inputs, or None."""
        return learns(self.input, self.input_estimators)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What follows the name of the weight, and `_`, in the names of the tables that its outputs are
        encoded with, and of what belongs to them; nothing where no tables are trained."""
        return table_names(self.output, self.output_estimators)

    @property
    def table_bytes(self) -> int:
        """What the tables take that outputs are encoded with, and the frequencies of their vectors."""
        return levels_of(self.output).nbytes if self.output_names else 0

    def project_tables(self, dimension: int = -1, path: str = "") -> TableProject:
        """The projection of an output along a dimension onto trained tables, which lie beside the weight at a
        path."""
        return TableProject(self.output, self.output_estimators, dimension=dimension, weight_path=path)

    @property
    def indices(self) -> tuple[str, ...]:
        """The names of the model's arguments that choose steps of inputs."""
        banks = (self.bank, None if self.rows is None else self.rows.bank)
        return tuple(bank.index for bank in banks if bank is not None)

    @property
    def bank_bytes(self) -> int:
        """What steps and offsets of inputs take that an index chooses: float32 each."""
        return 0 if self.bank is None else 4 * self.bank.size * len(input_names(self.learned_input))

    @property
    def slots(self) -> Slots:
        """What becomes of the tensors around the operation."""
        return Slots(
            self.input,
            self.input_estimators,
            self.output,
            self.output_estimators,
            self.backward,
            self.scheduled("input_activations"),
            self.scheduled("output_activations"),
            rows=self.rows,
            codec=self.codec,
        )

    @property
    def shared_rotation(self) -> Representation:
        """The rotation that weight and inputs both begin with; dense when they differ, or are drawn apart."""
        rotation = self.weight.rotation
        shared = rotation == self.input.rotation and not rotation.is_random
        return rotation if shared else Representation()


DENSE = Assignment()


def assign(weight: fx.Node, assignment: Assignment) -> None:
    """Record the assignment on the node that reads a weight."""
    weight.meta[_KEY] = assignment


def assigned(weight: object) -> Assignment | None:
    """The assignment recorded on the node that reads a weight; None where there is none."""
    found = weight.meta.get(_KEY) if isinstance(weight, fx.Node) else None
    return found if isinstance(found, Assignment) else None
