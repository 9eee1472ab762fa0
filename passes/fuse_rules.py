"""The rules of `Fuse`, in the order in which they are tried: larger patterns before what lies inside them.

Not among them is a rotation right after its inverse: leaving both out keeps values, not bits, so that it is
done before weights are packed, by `fold_rotations`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..runtime.fused import NormEnter, gated_linear, linear_activation
from ..runtime.kernels.neighbours import Norm
from ..runtime.representation import Representation
from .aten import argument
from .facts import project_of
from .fuse_rule import (
    FuseRule,
    Match,
    activation_of,
    called,
    entering,
    is_packed_linear,
    only_user,
    packed_at,
    why_not_module,
)
from .sites import attribute


@dataclass(frozen=True)
class OnceOnly(FuseRule):
    """What was projected already is not projected to the same representation again, where that is known to
    change nothing: one stage that is idempotent, such as a pattern of zeros."""

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Match | str | None:
        enter = entering(gm, node)
        if enter is None or enter.rotation.stages:
            return None
        source = cast(fx.Node, node.args[0])
        stages = enter.projection.stages
        if _projected(gm, source) != enter.projection or len(stages) != 1:
            return None
        if "idempotent" not in stages[0].tags:
            return f"{stages[0]} twice is not known to be {stages[0]} once"
        return Match((source, node), "projected once instead of twice")

    def apply(self, gm: fx.GraphModule, match: Match) -> fx.Node:
        source, node = match.nodes
        node.replace_all_uses_with(source)
        gm.graph.erase_node(node)
        return source


def _projected(gm: fx.GraphModule, node: fx.Node) -> Representation | None:
    """What a node projects to along the last dimension, not left rotated; None where it projects nothing."""
    enter = entering(gm, node)
    if enter is not None:
        return None if enter.rotation.stages else enter.projection
    project = project_of(gm, node)
    plain = project is not None and project.arrangement.is_plain and project.dimension == -1
    return project.representation if project is not None and plain and not project.keep_rotated else None


@dataclass(frozen=True)
class NormAndEnter(FuseRule):
    """A norm whose result is only prepared for packed linears: norm, projection and rotation at once.

    What reads only the shape of the norm's result reads it of the prepared one, which has the same.
    """

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Match | str | None:
        if entering(gm, node) is None:
            return None
        source = cast(fx.Node, node.args[0])
        found = _norm(gm, source)
        if not isinstance(found, _NormCall):
            return found
        others = [user for user in source.users if user is not node and not _reads_shape(user)]
        if others:
            return f"{called(source)} is read by {called(others[0])} too"
        return Match((source, node), f"its input is prepared together with {called(source)}")

    def apply(self, gm: fx.GraphModule, match: Match) -> fx.Node:
        source, node = match.nodes
        found, enter = _norm(gm, source), entering(gm, node)
        assert isinstance(found, _NormCall)
        assert enter is not None
        path, _, name = str(node.target).rpartition(".")
        gm.get_submodule(path).add_module(name, NormEnter(found.norm, enter))  # in the place of the Enter
        with gm.graph.inserting_before(source):
            operands = [gm.graph.get_attr(o) if isinstance(o, str) else o for o in found.operands]
            while operands and operands[-1] is None:
                operands.pop()
            fused = gm.graph.call_module(str(node.target), (found.source, *operands))
        fused.meta = dict(node.meta)
        for each in (node, source):
            each.replace_all_uses_with(fused)
            gm.graph.erase_node(each)
        return fused


@dataclass(frozen=True)
class _NormCall:
    """A norm in a graph: of which node, with which scale and bias, nodes or paths of parameters."""

    norm: Norm
    source: fx.Node
    operands: tuple[fx.Node | str | None, fx.Node | str | None]


def _norm(gm: fx.GraphModule, node: fx.Node) -> _NormCall | str:
    """The norm that a node is, or why it is none that can be fused."""
    if node.op == "call_module":
        return _norm_module(gm, node)
    rms, layer = node.target in (F.rms_norm, torch.rms_norm), node.target in (F.layer_norm, torch.layer_norm)
    if node.op != "call_function" or not (rms or layer):
        return f"its input comes from {called(node)}, which is no norm"
    shape = argument(node, 1, "normalized_shape")
    eps = argument(node, 4, "eps", 1e-5) if layer else argument(node, 3, "eps")
    fixed = isinstance(shape, list | tuple) and all(isinstance(size, int) for size in shape)
    if not fixed or not isinstance(eps, int | float | None):
        return f"the shape or eps of {called(node)} is computed"
    operands = (argument(node, 2, "weight"), argument(node, 3, "bias") if layer else None)
    if any(packed_at(gm, each) is not None for each in operands):
        return f"the scale of {called(node)} is stored packed"
    norm = Norm("rms_norm" if rms else "layer_norm", tuple(shape), eps)
    return _NormCall(norm, argument(node, 0, "input"), operands)


def _norm_module(gm: fx.GraphModule, node: fx.Node) -> _NormCall | str:
    module = attribute(gm, str(node.target))
    if not isinstance(module, nn.RMSNorm | nn.LayerNorm):
        return f"its input comes from {called(node)}, which is no norm"
    reason = why_not_module(gm, node, (nn.RMSNorm, nn.LayerNorm))
    if reason is None and module._modules:
        reason = f"the scale of {called(node)} is stored packed"
    if reason is not None:
        return reason
    names = [n if module._parameters.get(n) is not None else None for n in ("weight", "bias")]
    weight, bias = (None if name is None else f"{node.target}.{name}" for name in names)
    kind = "rms_norm" if isinstance(module, nn.RMSNorm) else "layer_norm"
    norm = Norm(kind, tuple(module.normalized_shape), module.eps)  # type: ignore[arg-type]
    return _NormCall(norm, argument(node, 0, "x" if kind == "rms_norm" else "input"), (weight, bias))


def _reads_shape(node: fx.Node) -> bool:
    """Whether a node asks for nothing but the shape of its first argument."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "ndimension")
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")


@dataclass(frozen=True)
class Gate(FuseRule):
    """`activation(gate(x)) * up(x)` of two packed weights that are stored alike: one gated linear."""

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Match | str | None:
        if not is_packed_linear(node):
            return None
        activation = only_user(node)
        product = only_user(activation) if activation is not None and activation_of(gm, activation) else None
        if activation is None or product is None or not _is_product(product):
            return None
        up = next(each for each in cast(tuple[fx.Node, ...], product.args) if each is not activation)
        if not is_packed_linear(up) or only_user(up) is None or up.args[0] is not node.args[0]:
            return f"{called(product)} is not with a packed linear of the same input"
        return self._why_not(gm, node, activation, up) or Match(
            (node, activation, up, product), f"{activation_of(gm, activation)} of it times the other, at once"
        )

    def _why_not(self, gm: fx.GraphModule, gate: fx.Node, activation: fx.Node, up: fx.Node) -> str | None:
        weights = [packed_at(gm, each.args[1]) for each in (gate, up)]
        assert weights[0] is not None
        assert weights[1] is not None
        if not weights[0].stored_like(weights[1]):
            return f"{cast(fx.Node, up.args[1]).target} is stored otherwise"
        if activation.op == "call_module":
            reason = why_not_module(gm, activation, (nn.SiLU, nn.ReLU, nn.GELU))
            if reason is not None:
                return reason
        first, last = sorted((gate, up))
        node = first.next
        while node is not last:  # the first product is computed where the last one is: its input stays
            if node.op != "get_attr" and node is not activation and not is_packed_linear(node):
                return f"{called(node)} is computed between it and {cast(fx.Node, up.args[1]).target}"
            node = node.next
        return None

    def apply(self, gm: fx.GraphModule, match: Match) -> fx.Node:
        gate, activation, up, product = match.nodes
        name = activation_of(gm, activation)
        biases = [each.args[2] if len(each.args) > 2 else None for each in (gate, up)]
        while biases and biases[-1] is None:
            biases.pop()
        with gm.graph.inserting_before(max(gate, up)):
            args = (gate.args[0], gate.args[1], up.args[1], *biases)
            fused = gm.graph.call_function(gated_linear, args, {"activation": name})
        return _replace(gm, product, fused, (activation, gate, up))


def _is_product(node: fx.Node) -> bool:
    """Whether a node multiplies two tensors and does nothing else."""
    function = node.op == "call_function" and node.target in (operator.mul, torch.mul)
    method = node.op == "call_method" and node.target == "mul"
    return (function or method) and len(node.args) == len(node.all_input_nodes) == 2 and not node.kwargs


@dataclass(frozen=True)
class Activate(FuseRule):
    """A packed linear of which only an activation is read: product, bias and activation at once."""

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Match | str | None:
        if not is_packed_linear(node):
            return None
        activation = only_user(node)
        if activation is None:
            return "its result is read in several places" if node.users else "its result is not read"
        name = activation_of(gm, activation)
        if name is None:
            return f"its result goes to {called(activation)}"
        if activation.op == "call_module":
            reason = why_not_module(gm, activation, (nn.SiLU, nn.ReLU, nn.GELU))
            if reason is not None:
                return reason
        return Match((node, activation), f"{name} together with the product")

    def apply(self, gm: fx.GraphModule, match: Match) -> fx.Node:
        node, activation = match.nodes
        name = activation_of(gm, activation)
        with gm.graph.inserting_before(node):
            fused = gm.graph.call_function(linear_activation, node.args, {"activation": name})
        return _replace(gm, activation, fused, (node,))


def _replace(gm: fx.GraphModule, last: fx.Node, fused: fx.Node, others: tuple[fx.Node, ...]) -> fx.Node:
    """`fused` in the place of `last`, which goes, and with it `others`, each after what reads it."""
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    for node in (last, *others):
        gm.graph.erase_node(node)
    return fused


RULES: tuple[FuseRule, ...] = (OnceOnly(), NormAndEnter(), Gate(), Activate())
