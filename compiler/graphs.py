"""Graphs of a model for passes that look across layers: one of the whole, else one of each part that has
one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from ..passes.pipeline import close, roundings
from ..runtime.structure import undisturbed
from .capture import Refusal
from .example import Example
from .whole import first_line, tensors_in, whole_graph


@dataclass(frozen=True)
class PartGraph:
    """The graph of the module at `path`, '' for the model, and the example that it was made for."""

    path: str
    graph: fx.GraphModule
    example: Example


def part_graphs(model: nn.Module, example: Example) -> tuple[list[PartGraph], list[Refusal]]:
    """Graphs that together reach as much of a model as can be: the model's own, or those of its children.

    Children are run on what they were called with when the model ran on the example.
    """
    graph = _graph_of(model, example)
    if isinstance(graph, fx.GraphModule):
        return [PartGraph("", graph, example)], []
    found, refusals = [], [Refusal("", graph)]
    pending = list(_children(model, "", example))
    while pending:
        path, module, called = pending.pop(0)
        graph = _graph_of(module, called)
        if isinstance(graph, fx.GraphModule):
            found.append(PartGraph(path, graph, called))
        else:
            refusals.append(Refusal(path, graph))
            pending = [*_children(module, path, called), *pending]
    return found, refusals


def _graph_of(module: nn.Module, example: Example) -> fx.GraphModule | str:
    """The graph of a module that gives what the module gives, or why there is none."""
    graph = whole_graph(module, example)
    if isinstance(graph, str):
        return graph
    with torch.no_grad(), undisturbed(module):
        expected = tensors_in(example.run(module))
        try:
            found = tensors_in(Example(tuple(example.tensors)).run(graph))
        except Exception as error:  # whatever an operation says of what export made of it
            return f"its graph does not run: {first_line(error)}"
    rounding = roundings(graph)
    if len(found) != len(expected) or not all(
        close(a, b, rounding) for a, b in zip(expected, found, strict=True)
    ):
        return "its graph gives other values than the module"
    return graph


def calls_of(model: nn.Module, path: str, batches: Sequence[Example]) -> list[Example]:
    """What the module at a path is called with on each batch; the batches themselves for the model.

    Batches on which it is not called are left out.
    """
    if not path:
        return list(batches)
    calls = (_first_calls(model, batch).get(path) for batch in batches)
    return [call for call in calls if call is not None]


def _kept(value: object) -> object:
    """A copy of what the module's code may write to afterwards."""
    return value.clone() if isinstance(value, Tensor) else value


def _children(module: nn.Module, path: str, example: Example) -> Iterator[tuple[str, nn.Module, Example]]:
    """The modules right below that hold matrices, with the first call of each; containers are looked into."""
    calls = _first_calls(module, example)
    for name, child in _called(module, calls):
        if any(p.dim() > 1 for p in child.parameters()):
            yield f"{path}.{name}" if path else name, child, calls[name]


def _called(
    module: nn.Module, calls: dict[str, Example], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if prefix + name in calls:
            yield prefix + name, child
        else:
            yield from _called(child, calls, f"{prefix}{name}.")


def _first_calls(module: nn.Module, example: Example) -> dict[str, Example]:
    """What each submodule was first called with, by path."""
    calls: dict[str, Example] = {}

    def note(path: str) -> Any:
        def hook(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path not in calls:
                calls[path] = Example(*tree_map(_kept, (args, kwargs)))

        return hook

    handles = [
        child.register_forward_pre_hook(note(path), with_kwargs=True)
        for path, child in module.named_modules()
        if path
    ]
    try:
        with torch.no_grad(), undisturbed(module):
            example.run(module)
    finally:
        for handle in handles:
            handle.remove()
    return calls
