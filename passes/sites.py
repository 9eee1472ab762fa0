"""Where a graph reads weights: the operations that can take a represented weight, and their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..runtime.arrangement import Arrangement
from ..runtime.operations import Operation, operation_on


@dataclass(frozen=True)
class Site:
    """One operation on one weight: the node of the operation and the node that reads the parameter."""

    node: fx.Node
    weight: fx.Node
    operation: Operation

    @property
    def path(self) -> str:
        """The parameter's path."""
        return str(self.weight.target)

    @property
    def source(self) -> fx.Node | None:
        """The node of what the weight is multiplied with; None for a lookup."""
        return self._argument(self.operation.input)

    @property
    def bias(self) -> fx.Node | None:
        """The node of the bias, or None."""
        return self._argument(self.operation.bias)

    def arrangement(self, shape: tuple[int, ...]) -> Arrangement:
        """How a weight of this shape is read as a matrix."""
        given, _ = self.operation.positional(self.node.args, self.node.kwargs)
        return self.operation.arrange(shape, given)

    def _argument(self, position: int | None) -> fx.Node | None:
        given, _ = self.operation.positional(self.node.args, self.node.kwargs)
        found = given[position] if position is not None and len(given) > position else None
        return found if isinstance(found, fx.Node) else None


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


def operation_of(node: fx.Node, is_weight: Callable[[Any], bool]) -> Operation | None:
    """What a node does with an argument for which `is_weight` holds, or None."""
    if node.op != "call_function":
        return None
    return operation_on(node.target, node.args, node.kwargs, is_weight)


def sites(gm: fx.GraphModule) -> Iterator[Site]:
    """Every operation that reads a parameter as its weight, in graph order."""
    for node in gm.graph.nodes:
        operation = operation_of(node, lambda argument: parameter_of(gm, argument) is not None)
        if operation is not None:
            given, _ = operation.positional(node.args, node.kwargs)
            yield Site(node, given[operation.weight], operation)


def parameter_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes that read parameters, in graph order."""
    return [node for node in gm.graph.nodes if parameter_of(gm, node) is not None]


def sites_of(weight: fx.Node) -> Iterator[Site]:
    """The operations that read what a node gives as their weight."""
    for user in weight.users:
        operation = operation_of(user, lambda argument: argument is weight)
        if operation is not None:
            yield Site(user, weight, operation)
