"""Weights that a graph reads through views of them, which its passes do not follow."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from ..runtime.views import is_view
from .sites import operation_of, parameter_nodes


def viewed_weights(gm: fx.GraphModule) -> list[str]:
    """The paths of parameters of which a view is the weight of an operation: `x @ weight.T`."""
    return [str(node.target) for node in parameter_nodes(gm) if _multiplied(_views(node))]


def _views(weight: fx.Node) -> list[fx.Node]:
    """The nodes that give views of what a node gives, views of views too."""
    found, last = [], [weight]
    while last:
        last = [user for node in last for user in node.users if _first(user) is node and _is_view(user)]
        found += last
    return found


def _multiplied(views: list[fx.Node]) -> bool:
    known = set(views)
    return any(
        operation_of(user, lambda argument: isinstance(argument, fx.Node) and argument in known) is not None
        for view in views
        for user in view.users
    )


def _first(node: fx.Node) -> object:
    return node.args[0] if node.args else None


def _is_view(node: fx.Node) -> bool:
    function = _function(node)
    return function is not None and is_view(function)


def _function(node: fx.Node) -> Callable[..., Any] | None:
    """The function of tensors that a node calls, an attribute's getter included."""
    if node.op == "call_method":
        found = getattr(Tensor, str(node.target), None)
    elif node.op != "call_function":
        found = None
    elif node.target is getattr:
        found = getattr(getattr(Tensor, str(node.args[1]), None), "__get__", None)
    elif node.target is operator.getitem:
        found = Tensor.__getitem__
    else:
        found = node.target
    return found if callable(found) else None
