"""What becomes of the tensors around one operation on a weight, and the operation with all of it done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .estimators.base import Estimator
from .gradient import with_represented_gradient
from .operations import Operation
from .projection import project_along
from .representation import Representation


@dataclass(frozen=True)
class Slots:
    """Representations of an operation's input, of its output, and of its output's gradient in the two
    products of the backward pass. Estimators say how gradients pass the projections of input and output."""

    input: Representation = field(default_factory=Representation)
    input_estimators: tuple[Estimator, ...] = ()
    output: Representation = field(default_factory=Representation)
    output_estimators: tuple[Estimator, ...] = ()
    grad_output: Representation = field(default_factory=Representation)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is done."""
        return self.input.is_dense and self.output.is_dense and self.grad_output.is_dense

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
            given[operation.input] = project_along(
                given[operation.input], operation.channel_of(rank), self.input, self.input_estimators
            )
        if self.grad_output.is_dense:
            result = function(*given, **kwargs)
        else:
            result = with_represented_gradient(function, operation, given, kwargs, rank, self.grad_output)
        if self.output.is_dense:
            return result
        return project_along(result, operation.features_of(rank), self.output, self.output_estimators)


NOTHING = Slots()
