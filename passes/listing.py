"""The text of a graph, one line per operation: the same in tests, errors, the command line and the report.

%tokens = input
%1 = embedding(%tokens, embed_tokens.weight)
%2 = project(q_proj.weight)                    hadamard(128) >> quantize(int4, midrise, channel, rms)
%3 = linear(%1, %2)
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..runtime.entering import Enter
from ..runtime.fused import NormEnter
from ..runtime.gradient import RepresentedGradient
from ..runtime.packed import Packed
from ..runtime.projection import Project
from .assignment import assigned
from .sites import attribute, operation_of, parameter_of

_COLUMN = 2  # spaces between the columns


def listing(gm: fx.GraphModule) -> str:
    """One line per operation with what it computes, its representation and, where known, dtype and shape.

    Reading a parameter or buffer has no line of its own; its path stands where it is used.
    """
    names = _names(gm)
    rows = [_row(gm, node, names) for node in gm.graph.nodes if node.op != "get_attr"]
    longest = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    widths = [length + _COLUMN if length else 0 for length in longest]
    return "\n".join(f"{a:<{widths[0]}}{b:<{widths[1]}}{c}".rstrip() for a, b, c in rows)


def _names(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Inputs by name, parameters by path, everything else numbered."""
    names: dict[fx.Node, str] = {}
    count = 0
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif node.op == "placeholder":
            names[node] = f"%{node.target}"
        elif node.op != "output":
            count += 1
            names[node] = f"%{count}"
    return names


def _row(gm: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str]) -> tuple[str, str, str]:
    if node.op == "placeholder":
        return f"%{node.target} = input", "", _shape(node)
    if node.op == "output":
        return f"return {_text(node.args[0], names)}", "", ""
    return f"{names[node]} = {_call(gm, node, names)}", _representation(gm, node), _shape(node)


def _call(gm: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str]) -> str:
    arguments = [_text(argument, names) for argument in node.args]
    arguments += [f"{name}={_text(value, names)}" for name, value in node.kwargs.items()]
    return f"{_name(gm, node)}({', '.join(arguments)})"


def _name(gm: fx.GraphModule, node: fx.Node) -> str:
    """What is called: a function's name, a module's path, or for what passes inserted what it does."""
    module = attribute(gm, str(node.target)) if node.op == "call_module" else None
    if isinstance(module, Project):
        return "project_rotated" if module.keep_rotated else "project"
    if isinstance(module, Enter):
        return "enter"
    if isinstance(module, NormEnter):
        return f"{module.norm.kind}_enter"
    if isinstance(module, RepresentedGradient):
        return module.operation.name
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _text(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, tuple | list):
        inner = ", ".join(_text(item, names) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(item, names)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, int | float | str | slice | type(None)) else _type_text(value)


def _type_text(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else type(value).__name__


def _representation(gm: fx.GraphModule, node: fx.Node) -> str:
    """What a projection projects to, how a packed weight is stored, or what a weight was given."""
    module = attribute(gm, str(node.target)) if node.op == "call_module" else None
    if isinstance(module, Project):
        return str(module.representation)
    if isinstance(module, Enter | NormEnter):
        return str(module.projection if module.projection.stages else module.rotation)
    if isinstance(module, RepresentedGradient):
        return f"gradient {module.backward}"
    packed = _packed_weight(gm, node)
    if packed is not None:
        return str(packed.representation)
    operation = operation_of(node, lambda argument: parameter_of(gm, argument) is not None)
    weight = (
        node.args[operation.weight] if operation is not None and len(node.args) > operation.weight else None
    )
    assignment = assigned(weight)
    if assignment is None or assignment.is_dense:
        return ""
    given = "" if assignment.input.is_dense else f" | input {assignment.input}"
    return f"{assignment.weight}{given}"


def _packed_weight(gm: fx.GraphModule, node: fx.Node) -> Packed | None:
    """The packed weight that an operation reads, or None."""
    read = (attribute(gm, str(a.target)) for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr")
    return next((module for module in read if isinstance(module, Packed)), None)


_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u"}


def _shape(node: fx.Node) -> str:
    """`f32[2,16,384]` from what a shape propagation noted on the node, or nothing."""
    meta = node.meta.get("tensor_meta")
    shape, dtype = getattr(meta, "shape", None), getattr(meta, "dtype", None)
    if shape is None or dtype is None:
        return ""
    name = str(dtype).removeprefix("torch.")
    kind = name.rstrip("0123456789")
    return f"{_SHORT.get(kind, kind)}{name[len(kind) :]}[{','.join(str(size) for size in shape)}]"
