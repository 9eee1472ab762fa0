"""What becomes of the tensors around one operation on a weight, and the operation with all of it done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor

from .bank import Rows
from .codec import Codec
from .estimators.base import Estimator
from .gradient import Backward, with_represented_gradient
from .learned import LearnedInput
from .operations import Operation
from .projection import Project
from .representation import Representation
from .schedule import Schedule
from .table_projection import TableOutput


@dataclass(frozen=True)
class Slots:
    """Representations of an operation's input, of its output, and of what the two products of its backward
    pass read. Estimators say how gradients pass the projections of input and output, schedules which numbers
    in these change while the model is trained. `learned_input` is the projection of the input where its step
    is a parameter. `rows` are given steps of the input that an index chooses, in the place of
    `input`. `learned_output` is the projection of the output where its tables are parameters, `codec` where
    they are given; `output` says which codebooks these are.

    `input_projection` and `output_projection` follow from the others and hold the numbers that change. They
    are attributes, so that torch.compile reads them, and copies that differ elsewhere have the same."""

    input: Representation = field(default_factory=Representation)
    input_estimators: tuple[Estimator, ...] = ()
    output: Representation = field(default_factory=Representation)
    output_estimators: tuple[Estimator, ...] = ()
    backward: Backward = field(default_factory=Backward)
    input_schedules: tuple[Schedule, ...] = ()
    output_schedules: tuple[Schedule, ...] = ()
    learned_input: LearnedInput | None = field(default=None, compare=False, repr=False)
    rows: Rows | None = None
    learned_output: TableOutput | None = field(default=None, compare=False, repr=False)
    codec: Codec | None = None
    input_projection: Project | None = field(default=None, compare=False, repr=False)
    output_projection: Project | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.input_projection is None and not self.input.is_dense:
            made = _projection(self.input, self.input_estimators, self.input_schedules)
            object.__setattr__(self, "input_projection", made)
        if self.output_projection is None and not self.output.is_dense:
            made = _projection(self.output, self.output_estimators, self.output_schedules)
            object.__setattr__(self, "output_projection", made)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is done."""
        dense = self.input.is_dense and self.output.is_dense and self.backward.is_dense
        return dense and self.rows is None

    @property
    def without_training(self) -> Slots:
        """What is left of them around a weight that is stored: gradients pass straight through."""
        return Slots(self.input, output=self.output, rows=self.rows, codec=self.codec)

    def held(self) -> list[Project]:
        """Projections with numbers that change."""
        found = self.input_projection, self.output_projection
        return [p for p in found if p is not None and p.program.schedules]

    def projected_input(self, x: Tensor, dimension: int) -> Tensor:
        """An input as the operation reads it, represented along a dimension counted from the end."""
        if self.rows is not None:
            return self.rows.project(x)
        if self.learned_input is not None:
            return self.learned_input.along(x, dimension)
        return x if self.input_projection is None else self.input_projection.along(x, dimension)

    def projected_output(self, x: Tensor, dimension: int) -> Tensor:
        """What the operation gives, represented along a dimension counted from the end."""
        if self.codec is not None:
            return self.codec.project(x, dimension)
        if self.learned_output is not None:
            return self.learned_output.along(x, dimension)
        return x if self.output_projection is None else self.output_projection.along(x, dimension)

    def run(
        self,
        function: Callable[..., Any],
        operation: Operation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        rank: int,
    ) -> Any:
        """`function(*args, **kwargs)`, an `operation` on a weight of `rank` dimensions, with slots filled.

        `args` are positional as far as the operation names them (`Operation.positional`).
        """
        given = list(args)
        if operation.input is not None and isinstance(given[operation.input], Tensor):
            given[operation.input] = self.projected_input(given[operation.input], operation.channel_of(rank))
        if self.backward.is_dense:
            result = function(*given, **kwargs)
        else:
            result = with_represented_gradient(function, operation, given, kwargs, rank, self.backward)
        if self.output.is_dense:
            return result
        return self.projected_output(result, operation.features_of(rank))


def _projection(
    representation: Representation, estimators: tuple[Estimator, ...], schedules: tuple[Schedule, ...]
) -> Project:
    """One of its own where numbers change by step."""
    if schedules:
        return Project(representation, estimators, schedules=schedules)
    return _unscheduled(representation, estimators)


@lru_cache(maxsize=1024)
def _unscheduled(representation: Representation, estimators: tuple[Estimator, ...]) -> Project:
    return Project(representation, estimators)


NOTHING = Slots()
