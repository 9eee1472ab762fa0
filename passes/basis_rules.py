"""Which operations leave the basis of the last dimension alone: rotating it before or after is the same.

A rotation acts on the last dimension in equal blocks. Reshaping keeps the blocks that divide both sizes, and
whatever mixes or scales vectors as wholes (sums, products with one number per vector, weighted means over
positions) commutes with it. What has no rule here is taken to mix or to tell apart the features.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import fx

from .aten import argument, shape_of, value_of

aten = torch.ops.aten
Rule = Callable[[fx.Node], tuple[fx.Node, ...]]


def same_basis(node: fx.Node) -> tuple[fx.Node, ...]:
    """The arguments whose last dimension is in the same basis as that of the node; () where none is."""
    rule = RULES.get(node.target)
    return rule(node) if rule is not None and node.op == "call_function" else ()


def has_basis(node: fx.Node) -> bool:
    """Whether a node is a tensor of real numbers with more than one feature."""
    value = value_of(node)
    return value is not None and value.is_floating_point() and value.dim() > 0 and value.shape[-1] > 1


def handed_on(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node is `source` with its channels in place: moved, cast or scaled as whole vectors."""
    if shape_of(node) is None or shape_of(source) is None or same_basis(node) != (source,):
        return False
    return shape_of(node)[-1:] == shape_of(source)[-1:]  # type: ignore[index]


def piece(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """What tensor a node is a part of along the last dimension, from where to where; None if of none."""
    if node.target in (aten.slice.Tensor, aten.narrow.default):
        return _sliced(node)
    cut = node.args[0] if node.target is getitem else None
    if not isinstance(cut, fx.Node) or cut.target not in CUTS or is_cut_across(cut):
        return None
    sizes = [int(part.shape[-1]) for part in cut.meta.get("val", ())]
    index, whole = node.args[1], cut.args[0]
    if not sizes or not isinstance(index, int) or not isinstance(whole, fx.Node):
        return None
    start = sum(sizes[:index])
    return whole, start, start + sizes[index]


def _sliced(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    whole, size = node.args[0], (shape_of(node) or (0,))[-1]
    start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
    if not isinstance(whole, fx.Node) or not _at_last(whole, argument(node, 1, "dim", 0)) or step != 1:
        return None
    width = (shape_of(whole) or (0,))[-1]
    start = max(start + width, 0) if isinstance(start, int) and start < 0 else start or 0
    return (whole, start, start + size) if isinstance(start, int) else None


def reads_values(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node reads more of an argument than its shape, dtype and device."""
    if node.target in _LIKE:
        return False
    return node.target not in (aten.type_as.default, aten.to.other) or node.args[0] is source


def is_cut_across(node: fx.Node) -> bool:
    """Whether a node cuts its argument along another dimension than its last."""
    cuts = node.target in (*CUTS, aten.unbind.int)
    return cuts and not _at_last(node.args[0], _cut_dim(node))


def _first(node: fx.Node) -> tuple[fx.Node, ...]:
    source = node.args[0]
    return (source,) if isinstance(source, fx.Node) else ()


def _along(position: int, name: str, default: int = 0, over: str = "source") -> Rule:
    """Operations along one or several dimensions, of which the last is none."""

    def rule(node: fx.Node) -> tuple[fx.Node, ...]:
        source = node.args[0]
        dims = argument(node, position, name, default)
        of = node if over == "result" else source
        if not isinstance(source, fx.Node) or dims in (None, []):
            return ()
        listed = dims if isinstance(dims, list | tuple) else [dims]
        return () if any(_at_last(of, dim) for dim in listed) else (source,)

    return rule


def _transposed(node: fx.Node) -> tuple[fx.Node, ...]:
    source = node.args[0]
    return _first(node) if not any(_at_last(source, dim) for dim in node.args[1:3]) else ()


def _permuted(node: fx.Node) -> tuple[fx.Node, ...]:
    return _first(node) if _at_last(node, node.args[1][-1]) else ()  # type: ignore[index]


def _indexed(node: fx.Node) -> tuple[fx.Node, ...]:
    source, indices = node.args[:2]
    return _first(node) if len(indices) < len(shape_of(source) or ()) else ()  # type: ignore[arg-type]


def _multiplied(node: fx.Node) -> tuple[fx.Node, ...]:
    """With one number, or one number per vector."""
    first, second = node.args[:2]
    if _per_vector(second) and isinstance(first, fx.Node):
        return (first,)
    divides = node.target is aten.div.Tensor
    return (second,) if not divides and _per_vector(first) and isinstance(second, fx.Node) else ()


def _per_vector(factor: object) -> bool:
    if isinstance(factor, fx.Node):
        shape = shape_of(factor)
        return shape is not None and (not shape or shape[-1] == 1)
    return isinstance(factor, int | float)


def _added(node: fx.Node) -> tuple[fx.Node, ...]:
    terms = [term for term in node.args[:2] if isinstance(term, fx.Node) and has_basis(term)]
    return tuple(terms) if len(terms) == 2 else ()


def _joined(node: fx.Node) -> tuple[fx.Node, ...]:
    parts = list(node.args[0])  # type: ignore[arg-type]
    return () if _at_last(node, argument(node, 1, "dim", 0)) else tuple(parts)


def _chosen(node: fx.Node) -> tuple[fx.Node, ...]:
    mask, *terms = node.args[:3]
    both = all(isinstance(term, fx.Node) and has_basis(term) for term in terms)
    return tuple(terms) if both and _per_vector(mask) else ()  # type: ignore[arg-type]


def _masked(node: fx.Node) -> tuple[fx.Node, ...]:
    return _first(node) if node.args[2] == 0 and _per_vector(node.args[1]) else ()


def _attended(node: fx.Node) -> tuple[fx.Node, ...]:
    """Each result is a weighted mean of values."""
    values = node.args[2]
    return (values,) if isinstance(values, fx.Node) else ()


def _mixed(node: fx.Node) -> tuple[fx.Node, ...]:
    """Rows of the result are sums of rows of the second factor."""
    second = node.args[1]
    return (second,) if isinstance(second, fx.Node) and len(shape_of(second) or ()) > 1 else ()


def _item(node: fx.Node) -> tuple[fx.Node, ...]:
    """Of a tensor cut along another dimension than its last."""
    cut = node.args[0]
    return _first(cut) if isinstance(cut, fx.Node) and is_cut_across(cut) else ()


_LIKE = (
    aten.new_ones.default, aten.new_zeros.default, aten.new_full.default, aten.new_empty.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
)  # fmt: skip
CUTS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


def _cut_dim(node: fx.Node) -> int:
    position = 1 if node.target is aten.unbind.int else 2
    return int(argument(node, position, "dim", 0))


def _at_last(node: object, dim: Any) -> bool:
    """Whether a dimension is the node's last; also for a node of unknown shape."""
    shape = shape_of(node)
    return shape is None or int(dim) % max(len(shape), 1) == max(len(shape), 1) - 1


RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten._to_copy.default,
         aten.type_as.default, aten.clone.default, aten.contiguous.default, aten.alias.default,
         aten.detach.default, aten.neg.default, aten.view.default, aten._unsafe_view.default,
         aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.expand.default), _first),
    aten.transpose.int: _transposed,
    aten.permute.default: _permuted,
    **dict.fromkeys((aten.unsqueeze.default,), _along(1, "dim", over="result")),
    **dict.fromkeys((aten.squeeze.dim, aten.select.int, aten.slice.Tensor, aten.narrow.default,
                     aten.index_select.default, aten.cumsum.default), _along(1, "dim")),
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList), _along(1, "dim", -1)),
    aten.index.Tensor: _indexed,
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar), _multiplied),
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor), _added),
    **dict.fromkeys((aten.cat.default, aten.stack.default), _joined),
    aten.where.self: _chosen,
    aten.masked_fill.Scalar: _masked,
    aten.scaled_dot_product_attention.default: _attended,
    **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.mm.default), _mixed),
    getitem: _item,
}  # fmt: skip
"""By operation: the arguments in the same basis."""
