"""The train form: weights and inputs pass through their projections on the way to the operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ..runtime.projection import Project as Projection
from .assignment import Assignment, assigned
from .base import Fact, Keeps, Pass
from .container import Inserter
from .facts import ASSIGNED, CANONICAL, TRAINABLE
from .sites import operation_of, parameter_nodes


@dataclass(frozen=True)
class Project(Pass):
    """Insert the projection of every represented weight and input; parameters stay latent, under their names.

    Operations that share an input and its representation share one projection. Where weight and inputs begin
    with the same rotation, both stay rotated, which leaves the product unchanged and saves two rotations, and
    as many in the backward pass. A weight rotated alone is rotated back: that costs `out * in * block`
    multiplications a step, against `tokens * in * block` for rotating the input, which is more unless a batch
    has fewer tokens than the weight has rows.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({CANONICAL, ASSIGNED})
    establishes: ClassVar[frozenset[Fact]] = frozenset({TRAINABLE})
    keeps: ClassVar[Keeps] = "shapes"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        inserter = Inserter(gm)
        for weight in parameter_nodes(gm):
            assignment = assigned(weight)
            if assignment is not None and not assignment.is_dense:
                _project_weight(inserter, weight, assignment)
        return inserter.count > 0


_SPARSE = 6  # the position of the option by which a lookup asks for a sparse gradient


def _project_weight(inserter: Inserter, weight: fx.Node, assignment: Assignment) -> None:
    rotated = not assignment.shared_rotation.is_dense
    for user in list(weight.users):
        operation = operation_of(user) if user.args[1:2] == (weight,) else None
        linear = operation == "linear"
        if operation == "embedding":
            user.args = user.args[:_SPARSE]  # a projection has a dense gradient
        keep = rotated and linear
        projection = Projection(assignment.weight, assignment.weight_estimators, keep_rotated=keep)
        user.replace_input_with(weight, inserter.project(weight, projection))
        if linear:
            inserter.project_input(user, assignment, keep)
