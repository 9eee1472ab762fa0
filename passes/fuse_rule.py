"""The contract of a rule that fuses, and what its patterns ask of a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..runtime.entering import Enter
from ..runtime.packed import Packed, packed_linear
from .sites import attribute


@dataclass(frozen=True)
class Match:
    """Nodes that a rule makes one, in the order in which they are computed; `what` says it of the result."""

    nodes: tuple[fx.Node, ...]
    what: str


class FuseRule(ABC):
    """A pattern of nodes and the one operation that computes the same bits; a frozen dataclass.

    Patterns are looked for at two kinds of nodes: an `Enter`, which prepares an input, and a `packed_linear`.
    """

    @property
    def name(self) -> str:
        """How errors call this rule."""
        return type(self).__name__

    @abstractmethod
    def match(self, gm: fx.GraphModule, node: fx.Node) -> Match | str | None:
        """The nodes around `node` that become one; why they cannot; None where the rule has no say."""

    @abstractmethod
    def apply(self, gm: fx.GraphModule, match: Match) -> fx.Node:
        """Put the one operation in their place and take them out; its node."""


def entering(gm: fx.GraphModule, node: object) -> Enter | None:
    """What an input is prepared by at a node, or None."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = attribute(gm, str(node.target))
    return module if isinstance(module, Enter) else None


def is_packed_linear(node: object) -> bool:
    """Whether a node is the product with one packed weight and nothing else."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is packed_linear


def packed_at(gm: fx.GraphModule, node: object) -> Packed | None:
    """The packed weight that a node reads, or None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = attribute(gm, str(node.target))
    return found if isinstance(found, Packed) else None


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads a node; None where there are others, or none."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def called(node: fx.Node) -> str:
    """How reasons call what a node does: a function's name, a module's path."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def why_not_module(gm: fx.GraphModule, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Why a module that a node calls cannot be dissolved into an operation, or None when it can.

    Hooks would no longer run; on a module that is called twice they would run for one of its calls only.
    """
    module = attribute(gm, str(node.target))
    if type(module) not in kinds or "forward" in vars(module):
        return f"{node.target} is a {type(module).__name__} with a forward of its own"
    if any(getattr(module, name) for name in _HOOKS):
        return f"{node.target} has hooks"
    calls = gm.graph.find_nodes(op="call_module", target=node.target, sort=False)
    return None if len(calls) == 1 else f"{node.target} is called {len(calls)} times"


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODULES: dict[type[nn.Module], str] = {nn.SiLU: "silu", nn.ReLU: "relu", nn.GELU: "gelu"}
_FUNCTIONS: dict[object, str] = {F.silu: "silu", F.relu: "relu", torch.relu: "relu", F.gelu: "gelu"}
_GELU: dict[object, str] = {"none": "gelu", "tanh": "gelu_tanh"}


def activation_of(gm: fx.GraphModule, node: fx.Node) -> str | None:
    """The activation, by its name among `ACTIVATIONS`, that a node is; None for everything else."""
    if node.op == "call_module":
        module = attribute(gm, str(node.target))
        name = _MODULES.get(type(module))
        return _GELU.get(module.approximate) if name == "gelu" else name
    if node.op == "call_method":
        return "relu" if node.target == "relu" else None
    name = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    return _GELU.get(node.kwargs.get("approximate", "none")) if name == "gelu" else name
