"""The norms of a graph over its last dimension, and other products with one parameter per feature.

RMS norm: y = x / sqrt(mean(x^2) + eps) * (weight + offset) (Zhang and Sennrich, 1910.07467, Eq. 4; the offset
is 1 in Gemma). Layer norm subtracts the mean first and adds a bias (Ba et al., 1607.06450, Eq. 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from .aten import argument, shape_of
from .sites import parameter_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """One norm over the last dimension of `source`; or a `scale` alone, where it is no node with its norm.

    `weight` and `bias` are the nodes that read its parameters, None where it has none; what is multiplied
    with is `weight + offset`.
    """

    node: fx.Node
    kind: Literal["rms", "layer", "scale"]
    source: fx.Node
    size: int
    eps: float | None
    weight: fx.Node | None = None
    offset: float = 0.0
    bias: fx.Node | None = None

    @property
    def path(self) -> str:
        """The parameter's path, or the node's name where it has none."""
        return str(self.weight.target) if self.weight is not None else f"%{self.node.name}"


def norm_of(gm: fx.GraphModule, node: fx.Node) -> Norm | None:
    """The norm that a node is, or None: also for one whose scale or bias is computed from something else."""
    if node.target is aten.mul.Tensor:
        return _product(gm, node)
    layer = node.target is aten.layer_norm.default
    if not layer and node.target is not aten.rms_norm.default:
        return None
    shape = argument(node, 1, "normalized_shape")
    scale = argument(node, 2, "weight")
    bias = argument(node, 3, "bias") if layer else None
    eps = argument(node, 4, "eps", 1e-5) if layer else argument(node, 3, "eps")
    weight, offset = scale_of(gm, scale)
    if len(shape) != 1 or (weight is None) != (scale is None) or not _parameter_or_none(gm, bias):
        return None
    source = argument(node, 0, "input")
    return Norm(node, "layer" if layer else "rms", source, int(shape[0]), eps, weight, offset, bias)


def _product(gm: fx.GraphModule, node: fx.Node) -> Norm | None:
    """`x * (weight + offset)` in either order."""
    size = (shape_of(node) or (0,))[-1]
    for source, factor in (node.args[:2], node.args[1::-1]):
        weight, offset = scale_of(gm, factor)
        fits = shape_of(factor) == (size,) != (1,) and shape_of(source) == shape_of(node) != (size,)
        if weight is not None and fits and isinstance(source, fx.Node):
            return Norm(node, "scale", source, size, None, weight, offset)
    return None


def norms(gm: fx.GraphModule) -> Iterator[Norm]:
    """Every norm over the last dimension, in graph order."""
    for node in gm.graph.nodes:
        found = norm_of(gm, node) if node.op == "call_function" else None
        if found is not None:
            yield found


def scale_of(gm: fx.GraphModule, node: object) -> tuple[fx.Node | None, float]:
    """The node of the parameter that `parameter + offset` reads, and the offset; (None, 0) for all else."""
    inner = uncast(node)
    if parameter_of(gm, inner) is not None:
        return inner, 0.0
    if isinstance(inner, fx.Node) and inner.target in (aten.add.Tensor, aten.add.Scalar) and not inner.kwargs:
        first, second = inner.args[:2]
        for parameter, number in ((first, second), (second, first)):
            parameter = uncast(parameter)
            if isinstance(number, int | float) and parameter_of(gm, parameter) is not None:
                return parameter, float(number)
    return None, 0.0


def scale(gm: fx.GraphModule, norm: Norm) -> Tensor | None:
    """What the norm multiplies with, `[size]` in float64; None where it has no weight."""
    parameter = parameter_of(gm, norm.weight)
    return None if parameter is None else parameter.detach().double() + norm.offset


def is_plain(gm: fx.GraphModule, norm: Norm) -> bool:
    """Whether it multiplies with ones, or with nothing."""
    found = scale(gm, norm)
    return found is None or bool((found == 1).all())


def uncast(node: object) -> fx.Node | None:
    """The node behind casts; None for what is no node."""
    while isinstance(node, fx.Node) and is_cast(node):
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None


def is_cast(node: fx.Node) -> bool:
    """Whether a node changes the dtype and nothing else."""
    if node.op != "call_function" or not node.args:
        return False
    return node.target in _CASTS


_CASTS = {
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten._to_copy.default,
    aten.type_as.default,
}  # fmt: skip


def _parameter_or_none(gm: fx.GraphModule, node: object) -> bool:
    return node is None or parameter_of(gm, node) is not None
