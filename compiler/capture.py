"""From a module to the graphs that passes rewrite: whole where that is possible, else part by part.

No module is refused. A strategy either gives the graph of a module or says why it cannot; a module
that no strategy can capture stays as it is, and its children are captured in its place, down to the single
operation: parameters that such a module reads itself are represented where it reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from ..passes.canonicalize import Canonicalize
from ..passes.dissolve import dissolves
from ..passes.part import Part, part_of
from ..passes.sites import Site, parameter_nodes, parameter_of, sites
from ..passes.stand_in import StandIn
from ..passes.viewed import viewed_weights
from ..runtime.arrangement import PLAIN, Arrangement
from ..runtime.errors import RequestError
from ..runtime.operations import writes
from ..runtime.packed import Packed
from ..runtime.structure import copy_structure, undisturbed
from .example import Example
from .observe import Observed, observe
from .reads import Computed, Read, computed_weights, read_of
from .symbolic import symbolic

Strategy = Callable[[nn.Module], "fx.Graph | str"]
STRATEGIES: tuple[tuple[str, Strategy], ...] = (("symbolic trace", symbolic),)
"""In order of preference: each takes a module and gives its graph, or the reason why it cannot."""


_NOT_USED = "not used when the model runs on the example inputs"


@dataclass(frozen=True)
class Use:
    """What is done with a parameter: an operation, whether it could take a represented weight, and as which
    matrix it reads it."""

    parameter: nn.Parameter
    operation: str
    representable: bool
    arrangement: Arrangement = PLAIN


@dataclass(frozen=True)
class Fragment:
    """The graph of the module at `path` ('' for the model), and the name of the strategy that captured it.

    `alone` is true when the module's parent runs as Python, which may read the module's parameters by itself.
    `weights` are the parameters that the graph reads, by path within the fragment, `viewed`
    those of which they read views, and `calls` the modules that are called whole.
    """

    path: str
    graph: fx.Graph
    strategy: str
    alone: bool
    weights: frozenset[str]
    calls: tuple[str, ...]
    uses: tuple[Use, ...]
    viewed: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A module that was not captured whole, and why; `path` is '' for the model itself."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path or 'the model'}: {self.reason}"


@dataclass
class Captured:
    """A model and the graphs of its parts.

    `root` has the structure of the user's model and its very tensors, which are never written to.
    """

    root: nn.Module
    fragments: list[Fragment] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    reads: dict[str, dict[str, Read]] = field(default_factory=dict)
    """By path of a module that runs as Python, the parameters that it reads, by name."""
    computed: dict[str, Computed] = field(default_factory=dict)
    """By path, weights that parametrizations compute."""
    unread: dict[str, str] = field(default_factory=dict)
    """By path, parameters of such modules of which nothing shows what reads them, and what was seen."""

    def copy(self, tensors: Callable[[Tensor], Tensor]) -> nn.Module:
        """A new module tree in which every parameter and buffer is what `tensors` makes of it, once each."""
        return copy_structure(self.root, tensors)


def capture(model: nn.Module, example: Example | None = None, *, whole: bool = True) -> Captured:
    """Graphs of a model. The model is not changed and its tensors are not copied.

    With an example, a graph of the whole model is kept only if it gives the same bits on it, and what modules
    do that run as Python is seen. Without `whole` only modules that do one operation become graphs, so that
    every module of the user can be called alone and takes hooks.

    Raises RequestError only for a model that cannot be copied, was compiled before, or does not run on the
    example.
    """
    _check(model)
    captured = Captured(copy_structure(model, lambda tensor: tensor))
    if example is not None:
        _run(captured.root, example)
    walk = _Walk(captured, example, STRATEGIES if whole else ())
    walk.visit(captured.root, "", alone=True)
    walk.read_attributes()
    return captured


def _run(model: nn.Module, example: Example) -> None:
    """Raise when the model does not run on the example inputs."""
    try:
        with torch.no_grad(), undisturbed(model):
            example.run(model)
    except Exception as error:  # the model's own code
        message = f"the model does not run on the example inputs: {type(error).__name__}: {error}"
        advice = "give its positional arguments as a tuple, or its arguments by name as a mapping"
        raise RequestError(message, advice=advice if isinstance(error, TypeError) else "") from error


def _check(model: nn.Module) -> None:
    """Raise for what is no model to begin with."""
    for path, module in model.named_modules():
        if isinstance(module, Part | StandIn | Packed):
            advice = "compile the original model; weights go from form to form by state_dict"
            raise RequestError(f"{path or 'the model'} was compiled before", advice=advice)
    for path, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise RequestError(
                "has no shape yet", where=path, advice="run the model once before compiling it"
            )


@dataclass
class _Walk:
    captured: Captured
    example: Example | None
    strategies: tuple[tuple[str, Strategy], ...]
    seen: set[int] = field(default_factory=set)
    python: dict[str, nn.Module] = field(default_factory=dict)
    """Modules that run as the user wrote them, by path."""

    def visit(self, module: nn.Module, path: str, alone: bool) -> None:
        """Capture a module whole, or else each of its children."""
        if id(module) in self.seen or next(module.parameters(), None) is None:
            return
        self.seen.add(id(module))
        reasons = ["some of its weights are computed by parametrizations"] if is_parametrized(module) else []
        strategies = (("one operation", one_operation), *self.strategies)
        for name, strategy in strategies if not reasons else ():
            reason = self._attempt(module, path, alone, name, strategy)
            if reason is None:
                return
            reasons += [reason] if reason else []
        self.captured.refusals.append(
            Refusal(path, "; ".join(reasons) or "only single operations were asked for")
        )
        self.python[path] = module
        self._children(module, path)

    def _attempt(
        self, module: nn.Module, path: str, alone: bool, name: str, strategy: Strategy
    ) -> str | None:
        """Capture a module by one strategy, or say why that cannot be."""
        graph = strategy(module)
        if isinstance(graph, fx.Graph) and not path and self.example is not None:
            graph = _differs(module, graph, self.example) or graph
        if isinstance(graph, str):
            return graph
        return self._keep(_fragment(module, path, graph, name, alone), module)

    def _children(self, module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            if isinstance(module, nn.MultiheadAttention):  # it never calls its children
                self.python[_join(path, name)] = child
            elif name != "parametrizations":
                self.visit(child, _join(path, name), alone=True)

    def read_attributes(self) -> None:
        """Find out what modules that run as Python do with the parameters that they hold."""
        held = [
            (path, name)
            for path, module in self.python.items()
            for name, p in module._parameters.items()
            if p is not None and p.dim() > 1
        ]
        self.captured.computed = {
            _join(path, c.name): c
            for path, module in self.python.items()
            for c in computed_weights(module, path)
        }
        known = {key for key in held if read_of(self.python[key[0]], key[1], {})}
        seen: dict[int, Observed] = {}
        if self.example is not None and len(known) < len(held):
            seen = observe(self.captured.root, self.example)
        for path, name in held:
            read = read_of(self.python[path], name, seen)
            if read is not None:
                self.captured.reads.setdefault(path, {})[name] = read
            else:
                self.captured.unread[_join(path, name)] = self._what_was_seen(path, name, seen)

    def _what_was_seen(self, path: str, name: str, seen: Mapping[int, Observed]) -> str:
        if self.example is None:
            return "its module runs as Python and no graph shows what reads it; give example_inputs"
        observed = seen.get(id(self.python[path]._parameters[name]))
        others = sorted(observed.others) if observed is not None else []
        return f"used by {', '.join(others)}, not as the weight of an operation" if others else _NOT_USED

    def _keep(self, fragment: Fragment, module: nn.Module) -> str | None:
        """Keep a graph, or say why it would reach less than the code that it was made of.

        Modules that it calls whole and that hold others are captured in their turn.
        """
        if fragment.viewed:
            return f"it multiplies with views of {', '.join(fragment.viewed)}, which graphs do not follow"
        self.captured.fragments.append(fragment)
        for target in fragment.calls:
            called = module.get_submodule(target)
            inside = any(True for _ in called.children())
            if inside or any(p.dim() > 1 for p in called.parameters()):
                self.visit(called, _join(fragment.path, target), alone=False)
        return None


def _fragment(module: nn.Module, path: str, graph: fx.Graph, strategy: str, alone: bool) -> Fragment:
    part = part_of(module, copy.deepcopy(graph))
    Canonicalize().rewrite(part)
    found = list(sites(part))
    weights = frozenset(str(node.target) for node in parameter_nodes(part))
    calls = tuple(dict.fromkeys(str(n.target) for n in part.graph.nodes if n.op == "call_module"))
    viewed = tuple(viewed_weights(part))
    uses = tuple(_uses(part, found))
    return Fragment(path, graph, strategy, alone, weights, calls, uses, viewed, _sources(found))


def _sources(found: Iterable[Site]) -> dict[str, str]:
    """The node that each weight of linear operations is multiplied with, where that is one and the same."""
    read: dict[str, set[str]] = {}
    for site in found:
        if site.operation.name == "linear" and site.source is not None:
            read.setdefault(site.path, set()).add(site.source.name)
    return {path: names.pop() for path, names in read.items() if len(names) == 1}


def _uses(part: fx.GraphModule, found: Iterable[Site]) -> Iterator[Use]:
    operations = {site.node: site for site in found}
    for node in part.graph.nodes:
        parameter = parameter_of(part, node)
        if parameter is None:
            continue
        for user in node.users:
            site = operations.get(user)
            if site is not None and site.weight is node:
                arrangement = site.arrangement(tuple(parameter.shape))
                yield Use(parameter, site.operation.name, True, arrangement)
            else:
                yield Use(parameter, _name(user), False)


def _name(node: fx.Node) -> str:
    """What a node does, in words."""
    if writes(node.target, node.args, node.kwargs):
        return "a lookup that writes to it (max_norm)"
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))


def _differs(module: nn.Module, graph: fx.Graph, example: Example) -> str | None:
    """What a graph gets wrong on example inputs, or None."""
    part = part_of(module, copy.deepcopy(graph))
    with torch.no_grad(), undisturbed(module):
        results = [_leaves(example.run(each)) for each in (module, part)]
    same = len(results[0]) == len(results[1]) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(*results, strict=True)
    )
    return None if same else "its trace computes something else on the example inputs"


def _leaves(value: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(value)


def one_operation(module: nn.Module) -> fx.Graph | str:
    """The graph of a module that does one operation on a weight; '' for every other."""
    return symbolic(module) if dissolves(module) else ""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
