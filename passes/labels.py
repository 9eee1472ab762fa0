"""Where the channels of a tensor go: labels that travel with them through the operations of a graph.

To divide channel c of a tensor by a positive s and multiply it back in the weights that read it, every
operation between must hand factors on: f(x / s) = f(x) / s. Which channel an element of a later tensor comes
from is told by a tensor of labels of the same shape (-1: none of them). Operations that only move numbers run
on the labels themselves; attention, pooling and products with other tensors have rules below. What has no
rule stops the channels that reach it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .aten import value_of

Labels = Tensor | tuple[Tensor | None, ...]
"""Of one tensor, or of a result that is a tuple of them."""
Known = Mapping[fx.Node, Labels]
Rule = Callable[[fx.Node, Known], "Labels | str"]
NONE = -1


def follow(node: fx.Node, known: Known) -> Labels | str | None:
    """The labels of a node's result, at least one of whose arguments has labels; or why they end here; or
    None when the result does not depend on the argument's numbers."""
    if node.op == "output":
        return "an output of the model"
    if node.target is operator.getitem:
        return _item(node, known)
    name = name_of(node)
    if name in _CONSTANTS:
        return None
    if name not in RULES:
        return name
    result = value_of(node)
    if result is not None and not result.is_floating_point():
        return name
    return RULES[name](node, known)


def blocked(node: fx.Node, known: Known) -> tuple[list[fx.Node], str]:
    """The arguments whose channels end at a node even when those of other arguments go on, and why."""
    if name_of(node) != "scaled_dot_product_attention":
        return [], ""
    asked = [a for a in node.args[:2] if isinstance(a, fx.Node) and a in known]
    return asked, "the query or key of attention"


def name_of(node: fx.Node) -> str:
    """What a node does, in one word: the name of the ATen operation without overload and in-place mark."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.removeprefix("aten::").rstrip("_")
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def is_followed(node: fx.Node) -> bool:
    """Whether an operation may hand factors of channels on."""
    return node.op == "call_function" and (node.target is operator.getitem or name_of(node) in RULES)


def keys_in(labels: Labels, count: int) -> Tensor:
    """Which of `count` labels occur: bools `[count]`."""
    found = torch.zeros(count + 1, dtype=torch.bool)
    for part in labels if isinstance(labels, tuple) else (labels,):
        if part is not None:
            found[_compact(part).flatten().long()] = True  # -1 is the last
    return found[:count]


def _compact(labels: Tensor) -> Tensor:
    """Without the repetitions that take no memory."""
    for d in range(labels.dim()):
        if labels.stride(d) == 0 and labels.shape[d]:
            labels = labels.narrow(d, 0, 1)
    return labels


def _only(node: fx.Node, known: Known) -> Tensor | None:
    """The labels of the first argument; None when another argument has some."""
    labelled = [a for a in node.all_input_nodes if a in known]
    first = node.args[0]
    labels = known[first] if labelled == [first] else None  # type: ignore[index]
    return labels if isinstance(labels, Tensor) else None


def _shape(node: fx.Node) -> torch.Size:
    result = value_of(node)
    assert result is not None, f"%{node.name} has no shape"
    return result.shape


def _item(node: fx.Node, known: Known) -> Labels | str:
    source, index = node.args[:2]
    labels = known[source]  # type: ignore[index]
    if not isinstance(labels, tuple) or not isinstance(index, int):
        return "getitem"
    part = labels[index]
    return torch.full((), NONE, dtype=torch.int32).expand(_shape(node)) if part is None else part


def _same(node: fx.Node, known: Known) -> Labels | str:
    """f(x / s) = f(x) / s, element by element."""
    labels = _only(node, known)
    return name_of(node) if labels is None else labels


def _moved(node: fx.Node, known: Known) -> Labels | str:
    labels = _only(node, known)
    if labels is None or len(node.all_input_nodes) > 1:
        return name_of(node)
    viewed = name_of(node) in ("view", "_unsafe_view")  # labels need not lie in memory as the numbers do
    target: Any = torch.ops.aten.reshape.default if viewed else node.target
    result = target(labels, *node.args[1:], **node.kwargs)
    return tuple(result) if isinstance(result, list) else result


def _clamped(node: fx.Node, known: Known) -> Labels | str:
    """max(x, 0), which is relu."""
    bounds = [*node.args[1:], *node.kwargs.values()]
    return _same(node, known) if bounds in ([0], [0, None], [0, 0]) else name_of(node)


def _filled(node: fx.Node, known: Known) -> Labels | str:
    labels = _only(node, known)
    return "masked_fill" if labels is None or node.args[2] != 0 else labels.expand(_shape(node))


def _multiplied(node: fx.Node, known: Known) -> Labels | str:
    """A product is linear in each of its factors, a quotient in its numerator."""
    labelled = [a for a in node.args[:2] if isinstance(a, fx.Node) and a in known]
    if len(labelled) != 1 or (name_of(node) == "div" and labelled[0] is not node.args[0]):
        return "a product with itself" if name_of(node) == "mul" else name_of(node)
    labels = known[labelled[0]]
    return labels.expand(_shape(node)) if isinstance(labels, Tensor) else name_of(node)


def _added(node: fx.Node, known: Known) -> Labels | str:
    """A sum hands on a factor that both terms have."""
    found = [known.get(a) if isinstance(a, fx.Node) else None for a in node.args[:2]]
    first, second = (f.expand(_shape(node)) if isinstance(f, Tensor) else None for f in found)
    if first is None or second is None or not torch.equal(first, second):
        return f"{name_of(node)}, a sum with something else"
    return first


def _joined(node: fx.Node, known: Known) -> Labels | str:
    parts = []
    joined: Any = node.args[0]
    for part in joined:
        labels = known.get(part)
        if labels is None:
            labels = torch.full((), NONE, dtype=torch.int32).expand(_shape(part))
        parts.append(labels)
    target: Any = node.target
    return target(parts, *node.args[1:], **node.kwargs)  # type: ignore[no-any-return]


def _attended(node: fx.Node, known: Known) -> Labels | str:
    """Each result of attention is a weighted mean of values, with the same weights for all features."""
    labels = known.get(node.args[2])  # type: ignore[arg-type]
    if not isinstance(labels, Tensor):
        return "the query or key of attention"
    shape = _shape(node)
    if node.kwargs.get("enable_gqa"):
        labels = labels.repeat_interleave(shape[-3] // labels.shape[-3], -3)
    return _over(labels, (-2,), shape, node)


def _mixed(node: fx.Node, known: Known) -> Labels | str:
    """A product of two tensors, none of which is a weight: what is summed over must have one label."""
    first, second = node.args[:2]
    if (first in known) == (second in known):
        return name_of(node)
    labels = known[second if second in known else first]  # type: ignore[index]
    summed = -2 if second in known else -1
    if not isinstance(labels, Tensor) or labels.dim() < 2:
        return name_of(node)
    return _over(labels, (summed,), _shape(node), node)


def _pooled(node: fx.Node, known: Known) -> Labels | str:
    """Over the last dimensions, as many as the operation's name says."""
    labels = _only(node, known)
    digits = [int(c) for c in name_of(node) if c.isdigit()]
    if labels is None or labels.dim() != digits[-1] + 2 or value_of(node) is None:
        return name_of(node)
    return _over(labels, range(2, labels.dim()), _shape(node), node)


def _averaged(node: fx.Node, known: Known) -> Labels | str:
    labels = _only(node, known)
    dims = node.args[1] if len(node.args) > 1 else None
    if labels is None or not dims:
        return name_of(node)
    given: Any = dims if isinstance(dims, list | tuple) else [dims]
    over = [d % labels.dim() for d in given]
    kept = _over(labels, over, None, node)
    if isinstance(kept, str) or kept.shape == _shape(node):
        return kept
    return kept.squeeze(over)


def _over(labels: Tensor, dims: Any, shape: torch.Size | None, node: fx.Node) -> Tensor | str:
    """Labels of what is computed along `dims`, which must have one label each; expanded to `shape`."""
    for d in dims:
        first = labels.narrow(d, 0, 1)
        if not torch.equal(first.expand_as(labels), labels):
            return f"{name_of(node)}, which mixes channels"
        labels = first
    return labels if shape is None else labels.expand(shape)


_MOVES = (
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "expand",
    "unsqueeze", "squeeze", "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind",
    "repeat", "repeat_interleave", "flip", "roll", "movedim", "swapaxes", "swapdims", "tensor_split",
)  # fmt: skip
_POSITIVE = (
    "relu", "leaky_relu", "prelu", "abs", "neg", "dropout", "feature_dropout", "contiguous", "clone", "alias",
    "detach", "to", "_to_copy", "type_as", "lift_fresh_copy",
)  # fmt: skip
_CONSTANTS = ("new_ones", "new_zeros", "new_full", "new_empty", "ones_like", "zeros_like", "full_like")
_POOLS = tuple(
    f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)
)
_RESIZES = tuple(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "bilinear2d", "nearest3d"))

RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, _moved),
    **dict.fromkeys(_POSITIVE, _same),
    **dict.fromkeys((*_POOLS, *_RESIZES), _pooled),
    **dict.fromkeys(("clamp", "clamp_min", "threshold"), _clamped),
    **dict.fromkeys(("mul", "div"), _multiplied),
    **dict.fromkeys(("add", "sub"), _added),
    **dict.fromkeys(("cat", "stack", "concat"), _joined),
    **dict.fromkeys(("matmul", "bmm"), _mixed),
    **dict.fromkeys(("mean", "sum"), _averaged),
    "masked_fill": _filled,
    "scaled_dot_product_attention": _attended,
}
"""By name of the ATen operation."""
