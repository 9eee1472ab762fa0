"""One spelling per operation, so that later passes look for one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import Fact, Pass
from .facts import CANONICAL
from .sites import EMBEDDING, LINEAR, attribute, parameter_nodes, parameter_of, plain_owner

_ATEN_LINEAR = (torch.ops.aten.linear, torch.ops.aten.linear.default)
_EMBEDDING_DEFAULTS: dict[str, object] = {
    "padding_idx": None,
    "max_norm": None,
    "norm_type": 2.0,
    "scale_grad_by_freq": False,
    "sparse": False,
}


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Linear and embedding modules and ATen calls become `F.linear` and `F.embedding` on parameters.

    Every parameter is read by one node, under the first of its paths when it is tied. Parameters stay where
    they are, so `state_dict` is unchanged.
    """

    establishes: ClassVar[frozenset[Fact]] = frozenset({CANONICAL})

    def rewrite(self, gm: fx.GraphModule) -> bool:
        changed = False
        for node in list(gm.graph.nodes):
            changed |= _module_call(gm, node) if node.op == "call_module" else _function_call(node)
        return _one_reader_each(gm) or changed


def _module_call(gm: fx.GraphModule, node: fx.Node) -> bool:
    """A call of a plain linear or embedding module to the function that it calls."""
    module = attribute(gm, str(node.target))
    operation = plain_owner(module)
    if operation is None:
        return False
    with gm.graph.inserting_before(node):
        weight = gm.graph.get_attr(f"{node.target}.weight")
        if operation == "linear":
            bias = gm.graph.get_attr(f"{node.target}.bias") if module.bias is not None else None
            args: tuple[Any, ...] = (_input(node), weight, *([] if bias is None else [bias]))
            new = gm.graph.call_function(LINEAR, args)
        else:
            options = [getattr(module, name) for name in _EMBEDDING_DEFAULTS]
            new = gm.graph.call_function(EMBEDDING, (_input(node), weight, *_shortest(options)))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
    return True


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs["input"]


def _function_call(node: fx.Node) -> bool:
    """A functional call to its canonical function with positional arguments."""
    if node.op != "call_function":
        return False
    if node.target in _ATEN_LINEAR or (node.target is LINEAR and node.kwargs):
        node.target = LINEAR
        _positional(node, {"bias": None})
        return True
    if node.target is EMBEDDING and node.kwargs:
        _positional(node, _EMBEDDING_DEFAULTS)
        return True
    return False


def _positional(node: fx.Node, defaults: dict[str, object]) -> None:
    names = ("input", "weight", *defaults)
    given: dict[str, Any] = defaults | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    options = [given[name] for name in defaults]
    if node.target is EMBEDDING:
        options = _shortest(options)
    elif options == [None]:
        options = []
    node.args, node.kwargs = (given["input"], given["weight"], *options), {}


def _shortest(options: list[Any]) -> list[Any]:
    """Options of a lookup without those at the end that are the default anyway."""
    defaults = list(_EMBEDDING_DEFAULTS.values())
    while options and options[-1] == defaults[len(options) - 1]:
        options.pop()
    return options


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
