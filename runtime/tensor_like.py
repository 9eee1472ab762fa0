"""A module in the place of a tensor: what torch's functions, Python's operators and attributes make of it.

A user's module that reads such a weight runs without a change to its code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .arithmetic import Arithmetic, in_order
from .attention import attention
from .operand import operand
from .operations import Operation, operation_on
from .slots import NOTHING, Slots


class TensorLike(Arithmetic, nn.Module, ABC):
    """A module that is used as the tensor that it decodes to.

    Functions that read it as a weight run `operate`. All others get the dense tensor, and so does whoever
    asks for what a tensor has and a module has not. `slots` say what is done around its operations.
    """

    slots: Slots

    @abstractmethod
    def decode(self) -> Tensor:
        """The dense tensor."""

    @abstractmethod
    def operate(
        self, func: Callable[..., Any], operation: Operation, given: list[Any], rest: Mapping[str, Any]
    ) -> Any:
        """`func(*given, **rest)`, an operation that reads this as its weight, with `slots` filled.

        `given` are positional as far as the operation names them (`Operation.positional`).
        """

    def operand(self) -> Tensor:
        """The dense tensor, which remembers through views of it what is done around its operations."""
        return operand(self.decode(), forward_slots(self))

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        func, args = in_order(func, args)
        if func is F.multi_head_attention_forward:
            return attention(args, kwargs, forward_slots, decoded)
        operation = operation_on(func, args, kwargs, lambda argument: isinstance(argument, TensorLike))
        if operation is None:
            return func(*_replaced(args, TensorLike.operand), **_replaced(kwargs, TensorLike.operand))
        given, rest = operation.positional(args, kwargs)
        weight: TensorLike = given[operation.weight]
        return weight.operate(func, operation, given, rest)

    def __getattr__(self, name: str) -> Any:
        """What a tensor has and a module has not, from the dense tensor: `weight.view(...)`, `weight.T`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or not hasattr(Tensor, name):
                raise
            return getattr(self.operand(), name)

    def __getitem__(self, index: Any) -> Any:
        return self.operand()[index]


def forward_slots(weight: object) -> Slots:
    """What is done around a weight in the forward pass; nothing around one that is no `TensorLike`."""
    return weight.slots if isinstance(weight, TensorLike) else NOTHING


def decoded(value: Any) -> Any:
    """The same with dense tensors, in lists, tuples and mappings too."""
    return _replaced(value, lambda weight: weight.decode())


def _replaced(value: Any, dense: Callable[[TensorLike], Tensor]) -> Any:
    if isinstance(value, TensorLike):
        return dense(value)
    if isinstance(value, tuple | list):
        return type(value)(_replaced(item, dense) for item in value)
    if isinstance(value, dict):
        return {key: _replaced(item, dense) for key, item in value.items()}
    return value
