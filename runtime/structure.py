"""Copies of module trees in which every tensor is chosen by the caller."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import RequestError


def copy_structure(model: nn.Module, tensors: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy of everything but parameters and buffers, which become what `tensors` makes of them.

    A tensor that is held twice is asked for once and stays shared. Results of a computation that a module
    keeps are copied without their history. Raises RequestError when something else in the model cannot be
    copied.
    """
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in _results(model)}
    memo |= {id(t): tensors(t) for t in (*model.parameters(), *model.buffers())}
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise RequestError(
            f"this model cannot be copied: {error}",
            where=type(model).__name__,
            advice="take what copy.deepcopy cannot copy out of the model first",
        ) from error


def _results(model: nn.Module) -> Iterator[Tensor]:
    """Plain attributes that autograd made, as torch.nn.utils.weight_norm leaves one."""
    for module in model.modules():
        for value in vars(module).values():
            found = value if isinstance(value, list) else [value]
            yield from (item for item in found if isinstance(item, Tensor) and item.grad_fn is not None)


def bake(owner: nn.Module) -> None:
    """Make what parametrizations compute, in eval(), parameters that are not trained, under its own names.

    torch's own removal takes parametrizations out of the class, which copies of a module share.
    """
    held: Any = owner
    with undisturbed(owner), torch.no_grad():
        values = {name: getattr(owner, name).detach() for name in held.parametrizations}
    held.__class__ = type(owner).__mro__[1]
    del owner._modules["parametrizations"]
    for name, value in values.items():
        owner.register_parameter(name, nn.Parameter(value, requires_grad=False))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in eval() inside the block; its modes and buffers are afterwards as they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, value in buffers:
            buffer.detach().copy_(value)
