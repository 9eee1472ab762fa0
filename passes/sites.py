"""Where a graph reads weights: the operations that can take a represented weight, and their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

LINEAR, EMBEDDING = F.linear, F.embedding
OPERATIONS: dict[Any, str] = {LINEAR: "linear", EMBEDDING: "embedding"}
"""Operations whose weight (their second argument) can be represented."""


@dataclass(frozen=True)
class Site:
    """One operation on one weight: the node of the operation and the node that reads the parameter."""

    node: fx.Node
    weight: fx.Node
    operation: str

    @property
    def path(self) -> str:
        """The parameter's path."""
        return str(self.weight.target)


def attribute(gm: nn.Module, path: str) -> Any:
    """What lies at a dotted path, or None."""
    found: Any = gm
    for atom in path.split("."):
        found = getattr(found, atom, None)
    return found


def parameter_of(gm: nn.Module, node: object) -> nn.Parameter | None:
    """The parameter that a `get_attr` node reads; None for everything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = attribute(gm, str(node.target))
    return found if isinstance(found, nn.Parameter) else None


def operation_of(node: fx.Node) -> str | None:
    """'linear' or 'embedding' for a call of one of the two functions, else None.

    A lookup with `max_norm` writes to its weight, and is none of ours.
    """
    if node.op != "call_function":
        return None
    if node.target is EMBEDDING and (node.args[3:4] or (node.kwargs.get("max_norm"),))[0] is not None:
        return None
    return OPERATIONS.get(node.target)


def sites(gm: fx.GraphModule) -> Iterator[Site]:
    """Every operation that reads a parameter as its weight, in graph order."""
    for node in gm.graph.nodes:
        operation = operation_of(node)
        if operation is not None and parameter_of(gm, node.args[1]) is not None:
            yield Site(node, node.args[1], operation)


def parameter_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes that read parameters, in graph order."""
    return [node for node in gm.graph.nodes if parameter_of(gm, node) is not None]


def plain_owner(module: object) -> str | None:
    """'linear' or 'embedding' for a module that does just what torch's own do, else None."""
    for kind, operation in ((nn.Linear, "linear"), (nn.Embedding, "embedding")):
        if isinstance(module, kind) and type(module).forward is kind.forward:
            computed = module._parameters.get("weight") is None  # by a parametrization, for one
            return None if computed or getattr(module, "max_norm", None) is not None else operation
    return None
