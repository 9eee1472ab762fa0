"""From a module to the graphs that passes rewrite: whole where that is possible, part by part where it is not.

No module is refused. A strategy either gives the graph of a module or says why it cannot; a module
that no strategy can capture stays as it is, and its children are captured in its place, down to the single
linear or embedding module. What is left over is listed with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from ..passes.sites import plain_owner
from ..runtime.errors import RequestError
from .symbolic import symbolic

Strategy = Callable[[nn.Module], "fx.Graph | str"]
STRATEGIES: tuple[tuple[str, Strategy], ...] = (("symbolic trace", symbolic),)
"""In order of preference: each takes a module and gives its graph, or the reason why it cannot."""


@dataclass(frozen=True)
class Fragment:
    """The graph of the module at `path`, and the name of the strategy that captured it.

    `alone` is true when the module's parent runs as Python, which may read the module's parameters by itself.
    """

    path: str
    graph: fx.Graph
    strategy: str
    alone: bool


@dataclass(frozen=True)
class Refusal:
    """A module that was not captured whole, and why; `path` is '' for the model itself."""

    path: str
    reason: str


@dataclass
class Captured:
    """A model and the graphs of its parts.

    `root` has the structure of the user's model and its very tensors; nothing of the user's is changed by
    what is done to it, as long as tensors are not written to.
    """

    root: nn.Module
    fragments: list[Fragment] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def copy(self, tensors: Callable[[Tensor], Tensor]) -> nn.Module:
        """A new module tree in which every parameter and buffer is what `tensors` makes of it, once each."""
        return copy_structure(self.root, tensors)


def capture(model: nn.Module) -> Captured:
    """Graphs of a model. The model is not changed and its tensors are not copied.

    Raises RequestError only for a model that cannot be copied at all.
    """
    captured = Captured(copy_structure(model, lambda tensor: tensor))
    _capture(captured, captured.root, "", alone=True, seen=set())
    return captured


def _capture(captured: Captured, module: nn.Module, path: str, alone: bool, seen: set[int]) -> None:
    if id(module) in seen or next(module.parameters(), None) is None:
        return
    seen.add(id(module))
    reasons = []
    for name, strategy in STRATEGIES:
        result = strategy(module)
        if isinstance(result, fx.Graph):
            captured.fragments.append(Fragment(path, result, name, alone))
            _capture_called(captured, module, path, result, seen)
            return
        reasons.append(result)
    captured.refusals.append(Refusal(path, "; ".join(reasons)))
    if isinstance(module, nn.MultiheadAttention):
        return  # it hands the weights of its children to one function and never calls them
    for name, child in module.named_children():
        _capture(captured, child, _join(path, name), True, seen)


def _capture_called(captured: Captured, module: nn.Module, path: str, graph: fx.Graph, seen: set[int]) -> None:
    """Modules that a graph calls whole and that hold others are captured in their turn."""
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        called = module.get_submodule(str(node.target))
        if plain_owner(called) is None and next(called.children(), None) is not None:
            _capture(captured, called, _join(path, str(node.target)), False, seen)


def copy_structure(model: nn.Module, tensors: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy of everything but parameters and buffers, which become what `tensors` makes of them.

    A tensor that is shared stays shared. Raises RequestError when something the model holds cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in memo:
            memo[id(tensor)] = tensors(tensor)
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise RequestError(
            f"this model cannot be copied: {error}",
            where=type(model).__name__,
            advice="compile works on a copy; take what cannot be copied out of the model first",
        ) from error


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
