"""The packed form: stored fields in place of parameters, and the operations that take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from ..runtime.packed import Enter, Packed, decode, pack_parameter, packed_embedding, packed_linear
from .assignment import Assignment, assigned
from .base import Fact, Keeps, Pass
from .container import Inserter
from .facts import ASSIGNED, CANONICAL, PACKED
from .sites import attribute, operation_of, parameter_of


@dataclass(frozen=True)
class Pack(Pass):
    """Replace every represented weight by the fields of its code, wherever `model` (or the graph) holds it.

    Linear operations that share an input, its representation and a rotation share one preparation of it.
    Other uses of a packed weight get it decoded.
    """

    model: nn.Module | None = None

    requires: ClassVar[frozenset[Fact]] = frozenset({CANONICAL, ASSIGNED})
    establishes: ClassVar[frozenset[Fact]] = frozenset({PACKED})
    keeps: ClassVar[Keeps] = "shapes"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        inserter = Inserter(gm)
        changed = False
        for weight in [node for node in gm.graph.nodes if node.op == "get_attr"]:
            assignment = assigned(weight)
            if assignment is not None and not assignment.is_dense:
                if not assignment.weight.is_dense:
                    self._store(gm, weight, assignment)
                _use_packed(inserter, weight, assignment)
                changed = True
        return changed

    def _store(self, gm: fx.GraphModule, weight: fx.Node, assignment: Assignment) -> None:
        parameter = parameter_of(gm, weight)
        if parameter is not None:
            packed = Packed.of(parameter, assignment.weight, assignment.input)
            pack_parameter(gm if self.model is None else self.model, parameter, packed)
        elif not isinstance(attribute(gm, str(weight.target)), Packed):
            raise LookupError(f"{weight.target} is neither a parameter nor packed")


def _use_packed(inserter: Inserter, weight: fx.Node, assignment: Assignment) -> None:
    graph = inserter.gm.graph
    decoded: fx.Node | None = None
    for user in list(weight.users):
        operation = operation_of(user) if user.args[1:2] == (weight,) else None
        if operation == "linear":
            _linear(inserter, user, assignment)
        elif assignment.weight.is_dense:
            continue
        elif operation == "embedding":
            user.target, user.args = packed_embedding, user.args[:2]
        else:
            if decoded is None:
                with graph.inserting_after(weight):
                    decoded = graph.call_function(decode, (weight,))
            user.replace_input_with(weight, decoded)


def _linear(inserter: Inserter, linear: fx.Node, assignment: Assignment) -> None:
    rotation = assignment.weight.rotation
    source = linear.args[0]
    if isinstance(source, fx.Node) and (rotation.stages or assignment.input.stages):
        entering = Enter(assignment.input, rotation)
        linear.update_arg(0, inserter.insert(source, entering, (assignment.input, rotation)))
    if not assignment.weight.is_dense:
        linear.target = packed_linear
