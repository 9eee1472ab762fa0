"""What becomes of the tensors around one operation on a weight, and the operation with all of it done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from .bank import Rows
from .codec import Codec
from .estimators.base import Estimator
from .gradient import Backward, with_represented_gradient
from .learned import LearnedInput
from .operations import Operation
from .projection import Project, project_along
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
    they are given; `output` says which codebooks these are."""

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

    @property
    def is_dense(self) -> bool:
        """Whether nothing is done."""
        dense = self.input.is_dense and self.output.is_dense and self.backward.is_dense
        return dense and self.rows is None

    @cached_property
    def scheduled_input(self) -> Project | None:
        """The projection of the input where numbers in it change: it holds their values."""
        return _held(self.input, self.input_estimators, self.input_schedules)

    @cached_property
    def scheduled_output(self) -> Project | None:
        """The same for the output."""
        return _held(self.output, self.output_estimators, self.output_schedules)

    def held(self) -> list[Project]:
        """Projections with numbers that change."""
        return [p for p in (self.scheduled_input, self.scheduled_output) if p is not None]

    def projected_input(self, x: Tensor, dimension: int) -> Tensor:
        """An input as the operation reads it, represented along a dimension counted from the end."""
        if self.rows is not None:
            return self.rows.project(x)
        if self.learned_input is not None:
            return self.learned_input.along(x, dimension)
        if self.scheduled_input is not None:
            return self.scheduled_input.along(x, dimension)
        return project_along(x, dimension, self.input, self.input_estimators)

    def projected_output(self, x: Tensor, dimension: int) -> Tensor:
        """What the operation gives, represented along a dimension counted from the end."""
        if self.codec is not None:
            return self.codec.project(x, dimension)
        if self.learned_output is not None:
            return self.learned_output.along(x, dimension)
        if self.scheduled_output is not None:
            return self.scheduled_output.along(x, dimension)
        return project_along(x, dimension, self.output, self.output_estimators)

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


def _held(
    representation: Representation, estimators: tuple[Estimator, ...], schedules: tuple[Schedule, ...]
) -> Project | None:
    return Project(representation, estimators, schedules=schedules) if schedules else None


NOTHING = Slots()
