"""Norms that were written out become single nodes, so that later passes look for one thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import fx

from .aten import argument, shape_of, value_of
from .base import Broken, Fact, Keeps, Pass
from .norms import is_cast, scale_of, uncast
from .reach import Reach, note

aten = torch.ops.aten


@dataclass(frozen=True)
class Raised:
    """A node and the call that it should be."""

    node: fx.Node
    target: Any
    args: tuple[Any, ...]
    what: str


def _raised(gm: fx.GraphModule) -> None:
    """No norm is written out that could be one node."""
    for found in written_out(gm):
        raise Broken(f"a {found.what} is written out", at=f"%{found.node.name}")


RAISED = Fact("norms raised", _raised)


@dataclass(frozen=True)
class RaiseNorms(Pass):
    """`x * rsqrt(mean(x^2) + eps)`, with casts and its scale, becomes `aten.rms_norm`; and ATen's several
    batch and layer norms become `aten.batch_norm` and `aten.layer_norm`.

    A scale `1 + weight` (Gemma) stays a node of its own. Only the graph changes. In half precision the raised
    norm rounds once where the written out one may round twice. A norm that is computed in less precision than
    the tensors around it keeps its casts, and its scale apart.
    """

    establishes: ClassVar[frozenset[Fact]] = frozenset({RAISED})
    keeps: ClassVar[Keeps] = "values"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        found = []
        for match in (with_scale, without_scale):
            for node in list(gm.graph.nodes):
                raised = match(gm, node)
                if raised is not None:
                    found.append(Reach(f"%{node.name}", True, f"is one {raised.what}"))
                    _replace(gm, raised)
        note(gm, self.name, found)
        gm.graph.eliminate_dead_code()
        return bool(found)


def written_out(gm: fx.GraphModule) -> Iterator[Raised]:
    """Every norm that could be one node."""
    for node in gm.graph.nodes:
        found = with_scale(gm, node) or without_scale(gm, node)
        if found is not None:
            yield found


def with_scale(gm: fx.GraphModule, node: fx.Node) -> Raised | None:
    """A norm together with its scale that ends in this node, or one that gives statistics too."""
    return _scaled(gm, node) or _tuple_norm(node)


def without_scale(gm: fx.GraphModule, node: fx.Node) -> Raised | None:
    """An rms norm without its scale that ends in this node."""
    found = _normalized(node) if node.users else None
    if found is None or _dtype(found[0]) != _dtype(node):
        return None
    return Raised(node, aten.rms_norm.default, (found[0], [_size(node)], None, found[1]), "rms norm")


def _replace(gm: fx.GraphModule, raised: Raised) -> None:
    with gm.graph.inserting_before(raised.node):
        new = gm.graph.call_function(raised.target, raised.args)
    new.meta = dict(raised.node.meta)
    raised.node.replace_all_uses_with(new)
    gm.graph.erase_node(raised.node)


def _scaled(gm: fx.GraphModule, node: fx.Node) -> Raised | None:
    """`normalized * scale` in either order, with casts between."""
    if node.target is not aten.mul.Tensor or not node.users:
        return None
    for normalized, scale in (node.args[:2], node.args[1::-1]):
        rms = _normalized(uncast(normalized)) or _bare(uncast(normalized))
        if rms is None or scale_of(gm, scale)[0] is None or shape_of(scale) != (_size(node),):
            continue
        source = _of_dtype(rms[0], node)
        if source is not None and _dtype(scale) == _dtype(node):
            args = (source, [_size(node)], scale, rms[1])
            return Raised(node, aten.rms_norm.default, args, "rms norm")
    return None


def _bare(node: fx.Node | None) -> tuple[fx.Node, float] | None:
    """(x, eps) of an rms norm without scale that is one node already."""
    if node is None or node.target is not aten.rms_norm.default or argument(node, 2, "weight") is not None:
        return None
    eps = argument(node, 3, "eps")
    last = argument(node, 1, "normalized_shape") == [_size(node)]
    return (argument(node, 0, "input"), eps) if last and eps is not None else None


def _normalized(node: fx.Node | None) -> tuple[fx.Node, float] | None:
    """(x, eps) of `x * rsqrt(mean(x^2) + eps)` or `x / sqrt(mean(x^2) + eps)`."""
    if node is None or node.target not in (aten.mul.Tensor, aten.div.Tensor):
        return None
    pairs = [node.args[:2]] if node.target is aten.div.Tensor else [node.args[:2], node.args[1::-1]]
    for x, factor in pairs:
        mean, eps = _root(factor, inverse=node.target is aten.mul.Tensor)
        if isinstance(x, fx.Node) and mean is not None and _mean_of_square(mean, x) and eps is not None:
            return x, eps
    return None


def _root(node: object, inverse: bool) -> tuple[fx.Node | None, float | None]:
    """(mean, eps) of `rsqrt(mean + eps)`, or of `sqrt(mean + eps)`."""
    node = uncast(node)
    if node is None or node.op != "call_function":
        return None, None
    power = node.args[1] if node.target is aten.pow.Tensor_Scalar else None
    function, exponent = (aten.rsqrt.default, -0.5) if inverse else (aten.sqrt.default, 0.5)
    inside = node.args[0] if node.target is function or power == exponent else None
    if not isinstance(inside, fx.Node) or inside.target not in (aten.add.Tensor, aten.add.Scalar):
        return None, None
    mean, eps = inside.args[:2]
    return (mean, eps) if isinstance(mean, fx.Node) and isinstance(eps, float) else (None, None)


def _mean_of_square(node: fx.Node, x: fx.Node) -> bool:
    """Whether a node is the mean of x^2 over the last dimension, which it keeps."""
    dims = len(shape_of(x) or ())
    if node.target is not aten.mean.dim or argument(node, 2, "keepdim", False) is not True:
        return False
    if argument(node, 1, "dim") not in ([-1], [dims - 1]):
        return False
    square = argument(node, 0, "self")
    if not isinstance(square, fx.Node):
        return False
    if square.target is aten.pow.Tensor_Scalar and square.args[1] != 2:
        return False
    if square.target is aten.mul.Tensor and square.args[0] is not square.args[1]:
        return False
    squares = (aten.pow.Tensor_Scalar, aten.mul.Tensor, aten.square.default)
    return square.target in squares and _as_exact(square.args[0], x)


def _as_exact(squared: object, x: fx.Node) -> bool:
    """Whether what is squared is x, or x cast up."""
    if squared is x:
        return True
    if not isinstance(squared, fx.Node) or not is_cast(squared) or squared.args[0] is not x:
        return False
    narrow, wide = _dtype(x), _dtype(squared)
    return narrow is not None and wide is not None and torch.finfo(wide).eps < torch.finfo(narrow).eps


def _of_dtype(source: fx.Node, node: fx.Node) -> fx.Node | None:
    """The source in the dtype of the node: itself, or what was cast up from it to be more exact inside."""
    value, wanted = value_of(source), _dtype(node)
    if value is None or value.dtype == wanted:
        return source
    before = source.args[0] if is_cast(source) else None
    if not isinstance(before, fx.Node) or wanted is None or _dtype(before) != wanted:
        return None
    return before if torch.finfo(wanted).eps > torch.finfo(value.dtype).eps else None


_BATCH_NORMS = {
    aten._native_batch_norm_legit_no_training.default: (5, 6),
    aten.native_batch_norm.default: (6, 7),
    aten.cudnn_batch_norm.default: (6, 7),
}  # positions of momentum and eps


def _tuple_norm(node: fx.Node) -> Raised | None:
    """The first result of an operation that gives a norm's output together with statistics."""
    inner = node.args[0] if node.target is getitem else None
    if not isinstance(inner, fx.Node) or node.args[1] != 0 or not node.users:
        return None
    if inner.target is aten.native_layer_norm.default:
        return Raised(node, aten.layer_norm.default, tuple(inner.args), "layer norm")
    if inner.target not in _BATCH_NORMS:
        return None
    momentum, eps = (inner.args[position] for position in _BATCH_NORMS[inner.target])
    training = inner.args[5] if _BATCH_NORMS[inner.target][0] == 6 else False
    args = (*inner.args[:5], training, momentum, eps, False)
    return None if training else Raised(node, aten.batch_norm.default, args, "batch norm")


def _size(node: fx.Node) -> int:
    return (shape_of(node) or (0,))[-1]


def _dtype(node: object) -> torch.dtype | None:
    value = value_of(node)
    return None if value is None else value.dtype
