"""A weight on its way to the operation that reads it, when the module around it runs as the user wrote it.

What an attribute gives is the projected weight; the representations of inputs, outputs and gradients belong
to the operation, wherever in the user's code that is. An `Operand` is a tensor that knows them: the first
function that multiplies with it, or with a view of it, does what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .arithmetic import Arithmetic, in_order
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
        return _called(func, args, kwargs or {})


class Traced(Arithmetic):
    """The same where a compiler looks on, which knows of no attributes of tensors: an object that holds one,
    and of which attributes and methods of tensors are asked."""

    def __init__(self, tensor: Tensor, slots: Slots) -> None:
        self.tensor, self.slots = tensor, slots

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _called(func, args, kwargs or {})

    def decode(self) -> Tensor:
        """The tensor."""
        return self.tensor

    def __getattr__(self, name: str) -> Any:
        found = getattr(Tensor, name)
        if callable(found):
            return lambda *args, **kwargs: _called(found, (self, *args), kwargs)
        return _called(found.__get__, (self,), {})

    def __getitem__(self, index: Any) -> Any:
        return _called(Tensor.__getitem__, (self, index), {})


def _called(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of operands: with slots filled where it multiplies with one, an operand where it looks at
    one in another way."""
    func, args = in_order(func, args)
    operation = operation_on(func, args, kwargs, lambda argument: isinstance(argument, Operand | Traced))
    if operation is not None:
        given, rest = operation.positional(args, kwargs)
        weight = given[operation.weight]
        slots, given = _slots_of(weight), plain(given)
        return slots.run(func, operation, given, plain(rest), given[operation.weight].dim())
    if func is F.multi_head_attention_forward:
        return attention(args, kwargs, _slots_of, plain)
    result = func(*plain(args), **plain(kwargs))
    source = args[0] if args else None
    if isinstance(source, Operand | Traced) and (is_view(func) or func is torch._weight_norm):
        return _marked(result, _slots_of(source))
    return result


def _slots_of(value: object) -> Slots:
    if isinstance(value, Operand):
        return value.__dict__["slots"]  # type: ignore[no-any-return]
    return value.slots if isinstance(value, Traced) else NOTHING


def operand(weight: Tensor, slots: Slots) -> Tensor:
    """The weight as an operand; itself when nothing is to be done around its operation."""
    if slots.is_dense:
        return weight
    if torch.compiler.is_compiling():
        return cast(Tensor, Traced(weight, slots))
    marked = weight.as_subclass(Operand)
    marked.__dict__["slots"] = slots
    return marked


def plain(value: Any) -> Any:
    """The same without operands, in lists, tuples and mappings too."""
    if isinstance(value, Operand):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor)
    if isinstance(value, Traced):
        return value.tensor
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return {key: plain(item) for key, item in value.items()} if type(value) is dict else value


def _marked(result: Any, slots: Slots) -> Any:
    if isinstance(result, Tensor):
        return operand(result, slots)
    return type(result)(_marked(item, slots) for item in result) if type(result) in (list, tuple) else result
