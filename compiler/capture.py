"""From a module to the graphs that passes rewrite: whole where that is possible, else part by part.

No module is refused. A strategy either gives the graph of a module or says why it cannot; a module
that no strategy can capture stays as it is, and its children are captured in its place, down to the single
linear or embedding module. What is left over is listed with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..passes.canonicalize import Canonicalize
from ..passes.part import Part, StandIn, part_of
from ..passes.sites import parameter_of, sites
from ..runtime.errors import RequestError
from ..runtime.packed import Packed
from ..runtime.structure import copy_structure, undisturbed
from .symbolic import symbolic

Probe = tuple[Any, ...]
Strategy = Callable[[nn.Module], "fx.Graph | str"]
STRATEGIES: tuple[tuple[str, Strategy], ...] = (("symbolic trace", symbolic),)
"""In order of preference: each takes a module and gives its graph, or the reason why it cannot."""


@dataclass(frozen=True)
class Use:
    """What a graph does with a parameter: an operation, and whether it could take a represented weight."""

    parameter: nn.Parameter
    operation: str
    representable: bool


@dataclass(frozen=True)
class Fragment:
    """The graph of the module at `path` ('' for the model), and the name of the strategy that captured it.

    `alone` is true when the module's parent runs as Python, which may read the module's parameters by itself.
    `weights` are the parameters that linear and embedding operations read, by path within the fragment, and
    `calls` the modules that are called whole.
    """

    path: str
    graph: fx.Graph
    strategy: str
    alone: bool
    weights: frozenset[str]
    calls: tuple[str, ...]
    uses: tuple[Use, ...]


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

    def copy(self, tensors: Callable[[Tensor], Tensor]) -> nn.Module:
        """A new module tree in which every parameter and buffer is what `tensors` makes of it, once each."""
        return copy_structure(self.root, tensors)

    def blind_spots(self) -> dict[str, str]:
        """Modules that use the parameters they hold out of sight of any graph, by path, and why."""
        captured = {fragment.path for fragment in self.fragments}
        found = {refusal.path: f"is not captured ({refusal.reason})" for refusal in self.refusals}
        for path, module in self.root.named_modules(remove_duplicate=False):
            if isinstance(module, nn.MultiheadAttention):
                found |= {
                    _join(path, name): "is read by nn.MultiheadAttention"
                    for name, _ in module.named_children()
                }
        for fragment in self.fragments:
            for called in fragment.calls:
                path = _join(fragment.path, called)
                if path not in captured and path not in found:
                    name = type(self.root.get_submodule(path)).__name__
                    found[path] = f"is called as a whole, as {name}"
        return found


def capture(model: nn.Module, probe: Probe | None = None) -> Captured:
    """Graphs of a model. The model is not changed and its tensors are not copied.

    With a `probe` (example inputs), a graph of the whole model is kept only if it gives the same bits on it.
    Raises RequestError only for a model that cannot be copied, was compiled before, or does not run on the
    probe.
    """
    _check(model)
    captured = Captured(copy_structure(model, lambda tensor: tensor))
    if probe is not None:
        _run(captured.root, probe)
    _Walk(captured, probe).visit(captured.root, "", alone=True)
    return captured


def _run(model: nn.Module, probe: Probe) -> None:
    """Raise when the model does not run on the example inputs."""
    if not isinstance(probe, tuple):
        advice = "write example_inputs=(x,)"
        raise RequestError(
            f"example_inputs is a {type(probe).__name__}, not a tuple of arguments", advice=advice
        )
    try:
        with torch.no_grad(), undisturbed(model):
            _leaves(model, probe)
    except Exception as error:  # the model's own code
        message = f"the model does not run on the example inputs: {type(error).__name__}: {error}"
        raise RequestError(message, advice="give its positional arguments as a tuple") from error


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
    probe: Probe | None
    seen: set[int] = field(default_factory=set)

    def visit(self, module: nn.Module, path: str, alone: bool) -> None:
        """Capture a module whole, or else each of its children."""
        if id(module) in self.seen or next(module.parameters(), None) is None:
            return
        self.seen.add(id(module))
        reasons = []
        for name, strategy in STRATEGIES:
            result = strategy(module)
            if isinstance(result, fx.Graph) and not path and self.probe is not None:
                result = _differs(module, result, self.probe) or result
            if isinstance(result, fx.Graph):
                self._keep(_fragment(module, path, result, name, alone), module)
                return
            reasons.append(result)
        self.captured.refusals.append(Refusal(path, "; ".join(reasons)))
        if not isinstance(module, nn.MultiheadAttention):  # it never calls its children
            for name, child in module.named_children():
                self.visit(child, _join(path, name), alone=True)

    def _keep(self, fragment: Fragment, module: nn.Module) -> None:
        """Keep a graph; modules that it calls whole and that hold others are captured in their turn."""
        self.captured.fragments.append(fragment)
        for target in fragment.calls:
            called = module.get_submodule(target)
            if next(called.children(), None) is not None:
                self.visit(called, _join(fragment.path, target), alone=False)


def _fragment(module: nn.Module, path: str, graph: fx.Graph, strategy: str, alone: bool) -> Fragment:
    part = part_of(module, copy.deepcopy(graph))
    Canonicalize().rewrite(part)
    found = list(sites(part))
    weights = frozenset(site.path for site in found)
    calls = tuple(dict.fromkeys(str(n.target) for n in part.graph.nodes if n.op == "call_module"))
    return Fragment(path, graph, strategy, alone, weights, calls, tuple(_uses(part, {s.node for s in found})))


def _uses(part: fx.GraphModule, operations: set[fx.Node]) -> Iterator[Use]:
    for node in part.graph.nodes:
        parameter = parameter_of(part, node)
        if parameter is None:
            continue
        for user in node.users:
            named = isinstance(user.target, str)
            name = user.target if named else getattr(user.target, "__name__", str(user.target))
            yield Use(parameter, str(name), user in operations and user.args[1] is node)


def _differs(module: nn.Module, graph: fx.Graph, probe: Probe) -> str | None:
    """What a graph gets wrong on example inputs, or None."""
    with torch.no_grad(), undisturbed(module):
        results = [_leaves(module, probe), _leaves(part_of(module, copy.deepcopy(graph)), probe)]
    same = len(results[0]) == len(results[1]) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(*results, strict=True)
    )
    return None if same else "its trace computes something else on the example inputs"


def _leaves(module: nn.Module, probe: Probe) -> list[Any]:
    """What a module returns for the probe, from the same random numbers every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.utils._pytree.tree_leaves(module(*probe))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
