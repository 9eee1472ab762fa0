"""Keys and values of attention in a representation, in a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx
from torch.nn import functional as F

from ..runtime.projection import Project
from .base import Fact, Keeps, Pass
from .container import Inserter
from .facts import CANONICAL


@dataclass(frozen=True)
class ProjectCache(Pass):
    """Project keys and values where a module attends; `caches` are projections by module path."""

    caches: Mapping[str, Project]

    requires: ClassVar[frozenset[Fact]] = frozenset({CANONICAL})
    keeps: ClassVar[Keeps] = "shapes"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        inserter = Inserter(gm)
        for node, path in attention_nodes(gm.graph):
            cache = next((self.caches[p] for p in _enclosing(path) if p in self.caches), None)
            if cache is None:
                continue
            operands = [
                a
                for a in (*node.args[1:3], node.kwargs.get("key"), node.kwargs.get("value"))
                if a is not None
            ]
            for operand in operands:
                assert isinstance(operand, fx.Node)
                node.replace_input_with(operand, inserter.project(operand, cache))
        return inserter.count > 0


def attention_nodes(graph: fx.Graph) -> list[tuple[fx.Node, str]]:
    """The attention calls of a graph, each with the path of the module whose code makes it."""
    found = []
    for node in graph.nodes:
        if node.op == "call_function" and node.target is F.scaled_dot_product_attention:
            stack = node.meta.get("nn_module_stack") or {}
            found.append((node, next(reversed(stack), "")))
    return found


def _enclosing(path: str) -> list[str]:
    """A path and those above it, the innermost first; '' last."""
    atoms = path.split(".") if path else []
    return [".".join(atoms[:count]) for count in range(len(atoms), -1, -1)]
