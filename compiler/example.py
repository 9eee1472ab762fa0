"""Example inputs of a model: positional arguments, or keyword arguments, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import RequestError
from ..runtime.structure import undisturbed


@dataclass(frozen=True)
class Example:
    """One call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """What the model returns for it, from the same random numbers every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among its arguments, in order: the inputs of a graph that was made for it."""
        leaves = torch.utils._pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def example_of(value: object) -> Example:
    """An example from what a user gives: a tuple of arguments, a mapping of keyword arguments, or an Example.

    Raises RequestError for anything else.
    """
    if isinstance(value, Example):
        return value
    if isinstance(value, tuple):
        return Example(value)
    if isinstance(value, Mapping):
        return Example((), dict(value))
    raise RequestError(
        f"example_inputs is a {type(value).__name__}, not a tuple of arguments or a mapping of keywords",
        advice="write example_inputs=(x,)",
    )


def own_example(model: nn.Module) -> Example | None:
    """What a model itself says that it can be run on: `example_inputs`, or the `dummy_inputs` of
    transformers.

    None where it says nothing, or where it does not run on that.
    """
    found = getattr(model, "example_inputs", None)
    found = found() if callable(found) else found
    if found is None:
        try:
            found = getattr(model, "dummy_inputs", None)
        except Exception:  # transformers raises for models whose inputs it cannot guess
            return None
    if found is None:
        return None
    example = example_of(found)
    try:
        with torch.no_grad(), undisturbed(model):
            example.run(model)
    except Exception:  # the model's own code
        return None
    return example
