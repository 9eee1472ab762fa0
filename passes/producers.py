"""Operations whose result can be divided channel by channel at no cost: by changing their parameters.

Rows of a weight and its bias, the scale and bias of a norm, a vector that a tensor is multiplied with.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from ..runtime.arrangement import PLAIN, Arrangement
from .aten import Reads, argument, value_of
from .channels import Channels, channels_of
from .labels import name_of
from .sites import Site, parameter_of


@dataclass(frozen=True)
class Share:
    """One parameter of a producer: keys 0, 1, ... have the shape `keys` that broadcasts to it, arranged; what
    takes part in the product is the parameter plus `offset`."""

    node: fx.Node
    keys: tuple[int, ...]
    arrangement: Arrangement = PLAIN
    offset: float = 0.0

    def divided(self, parameter: Tensor, scales: Tensor) -> Tensor:
        """The parameter that makes the result smaller by `scales` `[keys]`."""
        arranged = self.arrangement.matrix(parameter) + self.offset
        smaller = arranged / scales.to(parameter.device).reshape(self.keys) - self.offset
        return self.arrangement.restore(smaller, tuple(parameter.shape))


@dataclass(frozen=True)
class Producer:
    """An operation whose result can be divided by a vector. `labels` is the shape of the keys 0, 1, ... that
    broadcasts to the result; `channels` tells of the weight when it is a product or a convolution."""

    node: fx.Node
    labels: tuple[int, ...]
    shares: tuple[Share, ...]
    channels: Channels | None = None

    @property
    def path(self) -> str:
        """The path of the first parameter that takes the factors."""
        return str(self.shares[0].node.target)

    @property
    def count(self) -> int:
        """How many factors there are."""
        return prod(self.labels)


_NORMS = {
    "layer_norm": (2, 3), "native_layer_norm": (2, 3), "rms_norm": (2, None), "_fused_rms_norm": (2, None),
    "group_norm": (2, 3), "native_group_norm": (1, 2), "instance_norm": (1, 2),
    "batch_norm": (1, 2), "_native_batch_norm_legit_no_training": (1, 2),
}  # fmt: skip
"""Positions of scale and bias."""
_LAST = ("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")  # normalise last dimensions
_CASTS = ("to", "_to_copy")


def producers(gm: fx.GraphModule, read: Reads) -> dict[fx.Node, Producer | str]:
    """Every operation that could take factors, or why this one cannot."""
    found: dict[fx.Node, Producer | str] = {}
    for site in read.by_node.values():
        found[site.node] = _of_site(gm, site, read)
    for node in gm.graph.nodes:
        if node.op != "call_function" or node in found:
            continue
        if name_of(node) in _NORMS:
            found[node] = _of_norm(gm, node, read)
        elif name_of(node) == "mul":
            product = _of_product(gm, node, read)
            if product is not None:
                found[node] = product
    return found


def _of_site(gm: fx.GraphModule, site: Site, read: Reads) -> Producer | str:
    channels = channels_of(gm, site)
    if isinstance(channels, str):
        return channels
    parameter, result = parameter_of(gm, site.weight), value_of(site.node)
    if parameter is None or result is None:
        return "its shapes are not known"
    groups, _, out, _ = channels.blocks.shape(tuple(parameter.shape))
    shares = [Share(site.weight, (groups, 1, out, 1), channels.blocks)]
    if site.bias is not None:
        bias = parameter_of(gm, site.bias)
        if bias is None or bias.numel() != groups * out:
            return "its bias is not one number per row"
        shares.append(Share(site.bias, tuple(bias.shape)))
    features = site.operation.features % result.dim()
    labels = [1] * result.dim()
    labels[features] = groups * out
    if channels.lead:
        labels[: channels.lead], labels[features] = parameter.shape[: channels.lead], out
    return _checked(gm, Producer(site.node, tuple(labels), tuple(shares), channels), read)


def _of_norm(gm: fx.GraphModule, node: fx.Node, read: Reads) -> Producer | str:
    scale_at, bias_at = _NORMS[name_of(node)]
    scale = argument(node, scale_at, "weight")
    bias = None if bias_at is None else argument(node, bias_at, "bias")
    if scale is None:
        return f"{name_of(node)} has no scale"
    share = _vector(gm, scale)
    if share is None or (bias is not None and parameter_of(gm, bias) is None):
        return f"the scale of {name_of(node)} is not a parameter"
    shares = [share]
    if isinstance(bias, fx.Node):
        shares.append(Share(bias, share.keys))
    labels = share.keys
    if name_of(node) not in _LAST:
        source = value_of(node.args[0])
        labels = (*share.keys, *([1] * (source.dim() - 2 if source is not None else 0)))
    return _checked(gm, Producer(node, labels, tuple(shares)), read)


def _of_product(gm: fx.GraphModule, node: fx.Node, read: Reads) -> Producer | str | None:
    """The product of a tensor with a vector; None when it is another one."""
    found = [_vector(gm, argument) for argument in node.args[:2]]
    vectors = [share for share in found if share is not None]
    if len(vectors) != 1 or prod(vectors[0].keys) == 1 or value_of(node) is None:
        return None
    return _checked(gm, Producer(node, vectors[0].keys, (vectors[0],)), read)


def _vector(gm: fx.GraphModule, node: object) -> Share | None:
    """A parameter that is read as it is, through casts, or with a number added (Gemma's 1 + weight)."""
    offset = 0.0
    while isinstance(node, fx.Node) and node.op == "call_function" and len(node.users) == 1:
        number = node.args[1] if len(node.args) > 1 else None
        if name_of(node) == "add" and isinstance(number, int | float) and not node.kwargs:
            offset += number
        elif name_of(node) not in _CASTS:
            return None
        node = node.args[0]
    parameter = parameter_of(gm, node)
    if parameter is None or not isinstance(node, fx.Node):
        return None
    return Share(node, tuple(parameter.shape), offset=offset)


def _checked(gm: fx.GraphModule, producer: Producer, read: Reads) -> Producer | str:
    for share in producer.shares:
        if not read_once(gm, read, share.node):
            return f"{share.node.target} is also read elsewhere"
    return producer


def read_once(gm: fx.GraphModule, read: Reads, node: fx.Node) -> bool:
    """Whether the parameter that a node reads is read by one argument of one operation."""
    users = read.all_of(parameter_of(gm, node))
    return len(users) == 1 and times(users[0], [node]) == 1


def times(node: fx.Node, wanted: Collection[fx.Node]) -> int:
    """How many arguments of an operation are among `wanted`."""
    leaves = torch.utils._pytree.tree_leaves((node.args, node.kwargs))
    return sum(isinstance(leaf, fx.Node) and leaf in wanted for leaf in leaves)


def start(producer: Producer) -> Tensor | tuple[Tensor | None, ...]:
    """The labels of a producer's result."""
    labels = torch.arange(producer.count, dtype=torch.int32).reshape(producer.labels)
    result = producer.node.meta.get("val")
    if isinstance(result, Tensor):
        return labels.expand(result.shape)
    first, *others = result  # type: ignore[misc]
    return (labels.expand(first.shape), *(None for _ in others))
