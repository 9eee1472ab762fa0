"""Copies of module trees in which every tensor is chosen by the caller."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .errors import RequestError


def copy_structure(model: nn.Module, tensors: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy of everything but parameters and buffers, which become what `tensors` makes of them.

    A tensor that is held twice is asked for once and stays shared. Raises RequestError when something else in
    the model cannot be copied.
    """
    memo: dict[int, Any] = {id(t): tensors(t) for t in (*model.parameters(), *model.buffers())}
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise RequestError(
            f"this model cannot be copied: {error}",
            where=type(model).__name__,
            advice="take what copy.deepcopy cannot copy out of the model first",
        ) from error


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
