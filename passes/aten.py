"""What passes over ATen graphs ask of a node: its shape, an argument, how to call it, who reads a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from .sites import Site, attribute, sites


def value_of(node: object) -> Tensor | None:
    """The fake tensor that export noted on a node, or None."""
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def shape_of(node: object) -> tuple[int, ...] | None:
    """The shape of a node's tensor, or None where it is none."""
    value = value_of(node)
    return None if value is None else tuple(int(size) for size in value.shape)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def spoken(node: fx.Node) -> str:
    """How messages call the operation of a node: `silu`, `scaled_dot_product_attention`."""
    parts = str(getattr(node.target, "__name__", node.target)).split(".")
    return next(part for part in (parts[1:] if parts[0] == "aten" else parts) if part)


def is_plain_site(site: Site) -> bool:
    """Whether a weight takes the last dimension of its input to the last dimension of the result."""
    operation = site.operation
    return operation.name in ("linear", "matmul") and operation.channel == operation.features == -1


def readers_of(gm: fx.GraphModule) -> dict[int, list[fx.Node]]:
    """By the `id` of a parameter or buffer: the nodes that read it, through whichever `get_attr` node."""
    readers: dict[int, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(id(attribute(gm, str(node.target))), []).extend(node.users)
    return readers


@dataclass(frozen=True)
class Reads:
    """What reads what in a graph: the operations on weights by their node, and all readers of a tensor of the
    model by its `id`, through whichever `get_attr` node."""

    by_node: dict[fx.Node, Site]
    by_tensor: dict[int, list[fx.Node]]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Reads:
        """The reads of a graph as it is now."""
        return cls({site.node: site for site in sites(gm)}, readers_of(gm))

    def all_of(self, tensor: object) -> list[fx.Node]:
        """The nodes that read a parameter or buffer."""
        return self.by_tensor.get(id(tensor), [])


_ARGUMENT = "rhoc.argument"


def note_argument(node: fx.Node, name: str) -> None:
    """Note which argument of the model's forward an input of its graph is."""
    node.meta[_ARGUMENT] = name


def argument_of(node: fx.Node) -> str:
    """The argument of the model's forward that an input of its graph is, '' where nothing was noted."""
    return str(node.meta.get(_ARGUMENT, ""))
