"""Leave out what changes nothing: assertions, casts to the same dtype, dropout in eval(), empty
concatenations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from .base import Keeps, Pass

aten = torch.ops.aten
_ALIKE = {
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.detach_.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.clone.default,
}


@dataclass(frozen=True)
class Simplify(Pass):
    """Nodes of an exported graph that hand on their first argument unchanged are taken out.

    Nodes need the shapes that export notes on them (`node.meta["val"]`).
    """

    keeps: ClassVar[Keeps] = "bits"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        changed = False
        for node in list(gm.graph.nodes):
            same = _same_as(node)
            if same is not None:
                node.replace_all_uses_with(same)
                gm.graph.erase_node(node)
                changed = True
        before = len(gm.graph.nodes)
        gm.graph.eliminate_dead_code(_impure)
        return changed or len(gm.graph.nodes) != before


def _same_as(node: fx.Node) -> fx.Node | None:
    """The argument whose value and shape the node has, or None."""
    if node.op != "call_function":
        return None
    if node.target is aten.cat.default:
        full = [a for a in node.args[0] if not _empty(a)]  # type: ignore[union-attr]
        return full[0] if len(full) == 1 and _shape(full[0]) == _shape(node) else None  # type: ignore[return-value]
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.target in _ALIKE:
        return source if _strides(source) == _strides(node) else None  # a view after it may need its strides
    if node.target is aten.dropout.default and node.args[2] is False:
        return source
    if str(node.target).startswith("aten.to.") and _like(source, node):
        return source
    resized = (aten.view.default, aten.reshape.default, aten.expand.default, aten._unsafe_view.default)
    return source if node.target in resized and _shape(source) == _shape(node) is not None else None


def _impure(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")


def _value(node: Any) -> Tensor | None:
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def _shape(node: Any) -> tuple[int, ...] | None:
    value = _value(node)
    return None if value is None else tuple(value.shape)


def _strides(node: Any) -> tuple[int, ...] | None:
    value = _value(node)
    return None if value is None else tuple(value.stride())


def _empty(node: Any) -> bool:
    value = _value(node)
    return value is not None and value.numel() == 0


def _like(a: fx.Node, b: fx.Node) -> bool:
    x, y = _value(a), _value(b)
    return x is not None and y is not None and (x.dtype, x.device) == (y.dtype, y.device)
