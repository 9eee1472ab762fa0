"""A weight on its way to the operation that reads it, when the module around it runs as the user wrote it.

What an attribute gives is the projected weight; the representations of inputs, outputs and gradients belong
to the operation, wherever in the user's code that is. An `Operand` is a tensor that knows them: the first
function that multiplies with it, or with a view of it, does what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import attention
from .operations import operation_on
from .slots import NOTHING, Slots
from .views import is_view


class Operand(Tensor):
    """A tensor with slots. Made by `operand`."""

    slots: Slots

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        operation = operation_on(func, args, kwargs, lambda argument: isinstance(argument, Operand))
        if operation is not None:
            given, rest = operation.positional(args, kwargs)
            weight = given[operation.weight]
            slots, given = weight.__dict__["slots"], plain(given)
            return slots.run(func, operation, given, plain(rest), given[operation.weight].dim())
        if func is F.multi_head_attention_forward:
            return attention(
                args, kwargs, lambda a: a.__dict__["slots"] if isinstance(a, Operand) else NOTHING, plain
            )
        result = func(*plain(args), **plain(kwargs))
        source = args[0] if args else None
        if isinstance(source, Operand) and (is_view(func) or func is torch._weight_norm):
            return _marked(result, source.__dict__["slots"])
        return result


def operand(weight: Tensor, slots: Slots) -> Tensor:
    """The weight as an operand; itself when nothing is to be done around its operation."""
    if slots.is_dense:
        return weight
    marked = weight.as_subclass(Operand)
    marked.__dict__["slots"] = slots
    return marked


def plain(value: Any) -> Any:
    """The same without operands, in lists, tuples and mappings too."""
    if isinstance(value, Operand):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor)
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return {key: plain(item) for key, item in value.items()} if type(value) is dict else value


def _marked(result: Any, slots: Slots) -> Any:
    if isinstance(result, Tensor):
        return operand(result, slots)
    return type(result)(_marked(item, slots) for item in result) if type(result) in (list, tuple) else result
