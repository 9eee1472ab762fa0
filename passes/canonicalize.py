"""One spelling per operation, so that later passes look for one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import fx
from torch.nn import functional as F

from ..runtime.operations import OPERATIONS
from .base import Fact, Pass
from .dissolve import EMBEDDING_DEFAULTS, Attribute, dissolved, shortest
from .facts import CANONICAL
from .sites import attribute, parameter_nodes, parameter_of

_ATEN_LINEAR = (torch.ops.aten.linear, torch.ops.aten.linear.default)
_METHODS = {
    "matmul": torch.matmul,
    "mm": torch.mm,
    "bmm": torch.bmm,
    "addmm": torch.addmm,
    "baddbmm": torch.baddbmm,
}
"""Methods of tensors that are functions of torch."""


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Modules that do one operation on a weight become calls of its function on parameters, positionally.

    Every parameter is read by one node, under the first of its paths when it is tied. Parameters stay where
    they are, so `state_dict` is unchanged.
    """

    establishes: ClassVar[frozenset[Fact]] = frozenset({CANONICAL})

    def rewrite(self, gm: fx.GraphModule) -> bool:
        changed = False
        for node in list(gm.graph.nodes):
            changed |= _module_call(gm, node) if node.op == "call_module" else _function_call(gm, node)
        return _one_reader_each(gm) or changed


def _module_call(gm: fx.GraphModule, node: fx.Node) -> bool:
    """A call of a module that does one operation to the function that it calls."""
    call = dissolved(attribute(gm, str(node.target)), node.args, node.kwargs)
    if call is None:
        return False
    with gm.graph.inserting_before(node):
        args = [
            gm.graph.get_attr(f"{node.target}.{a.name}") if isinstance(a, Attribute) else a for a in call.args
        ]
        new = gm.graph.call_function(call.function, tuple(args))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
    return True


def _function_call(gm: fx.GraphModule, node: fx.Node) -> bool:
    """A functional call, or a method that multiplies with a parameter, to its canonical function, its
    operands positional."""
    method = node.op == "call_method" and node.target in _METHODS
    if method and any(parameter_of(gm, argument) is not None for argument in node.all_input_nodes):
        node.op, node.target = "call_function", cast(Any, _METHODS[str(node.target)])
        _positional(node)
        return True
    if node.op != "call_function":
        return False
    if node.target in _ATEN_LINEAR:
        node.target = cast(Any, F.linear)
    elif not node.kwargs or node.target not in OPERATIONS:
        return False
    if node.target is F.embedding:
        _lookup(node)
        return True
    _positional(node)
    return True


def _positional(node: fx.Node) -> None:
    given, rest = OPERATIONS[node.target][0].positional(node.args, node.kwargs)
    if node.target is F.linear and given[2:] == [None]:
        del given[2:]
    node.args, node.kwargs = tuple(given), rest


def _lookup(node: fx.Node) -> None:
    names = ("input", "weight", *EMBEDDING_DEFAULTS)
    given: dict[str, Any] = EMBEDDING_DEFAULTS | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    options = shortest([given[name] for name in EMBEDDING_DEFAULTS])
    node.args, node.kwargs = (given["input"], given["weight"], *options), {}


def _one_reader_each(gm: fx.GraphModule) -> bool:
    """One `get_attr` node for each parameter, first in the order of use."""
    names = {id(parameter): name for name, parameter in gm.named_parameters()}
    readers: dict[int, fx.Node] = {}
    changed = False
    for node in parameter_nodes(gm):
        parameter = parameter_of(gm, node)
        first = readers.setdefault(id(parameter), node)
        if first is not node:
            node.replace_all_uses_with(first)
            gm.graph.erase_node(node)
            changed = True
        elif node.target != names[id(parameter)]:
            node.target, changed = names[id(parameter)], True
    return changed
