"""The train form: weights and what surrounds them pass through projections on the way to the operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx
from torch.nn import functional as F

from ..runtime.holders import Holders
from .assignment import Assignment, assigned
from .base import Fact, Keeps, Pass
from .container import Inserter
from .facts import ASSIGNED, CANONICAL, TRAINABLE
from .learned import LearnedSteps, input_steps, output_tables
from .sites import Site, parameter_nodes, parameter_of, sites_of


@dataclass(frozen=True)
class Project(Pass):
    """Insert the projection of every represented weight and of the tensors around its operations.

    Parameters stay latent, under their names. Operations that share an input and its representation share one
    projection. Where the weight of a linear operation and its inputs begin with the same rotation, both stay
    rotated, which leaves the product unchanged and saves two rotations, and as many in the backward pass. A
    weight rotated alone is rotated back: that costs `out * in * block` multiplications a step, against
    `tokens * in * block` for rotating the input, which is more unless a batch has fewer tokens than the
    weight has rows. Learned steps are parameters beside the weights, wherever `holders` (or the graph) have
    them.
    """

    holders: Holders | None = None

    requires: ClassVar[frozenset[Fact]] = frozenset({CANONICAL, ASSIGNED})
    establishes: ClassVar[frozenset[Fact]] = frozenset({TRAINABLE})
    keeps: ClassVar[Keeps] = "shapes"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        inserter = Inserter(gm)
        steps = LearnedSteps(inserter, Holders(gm) if self.holders is None else self.holders)
        for weight in parameter_nodes(gm):
            assignment = assigned(weight)
            if assignment is not None and not assignment.is_dense:
                _project_weight(inserter, steps, weight, assignment)
        return inserter.count > 0


_SPARSE = 6  # the position of the option by which a lookup asks for a sparse gradient


def _project_weight(inserter: Inserter, steps: LearnedSteps, weight: fx.Node, assignment: Assignment) -> None:
    parameter = parameter_of(inserter.gm, weight)
    rank = parameter.dim() if parameter is not None else 2
    learned = steps.of_weight(weight, parameter, assignment) if parameter is not None else ()
    found = {site.node: site for site in sites_of(weight)}
    for user in list(weight.users):
        site = found.get(user)
        keep = site is not None and _keeps_rotated(site, assignment, inserter)
        projection = assignment.project_weight(str(weight.target), keep_rotated=keep)
        if site is not None and user.target is F.embedding:
            user.args = user.args[:_SPARSE]  # a projection has a dense gradient
        projected = inserter.project(weight, projection, *learned)
        user.replace_input_with(weight, projected)
        if site is not None:
            if assignment.learned_input is None:
                inserter.project_input(site, assignment, rank, keep_rotated=keep)
            else:
                steps.project_input(site, assignment, keep_rotated=keep)
            if assignment.cushion is not None and parameter is not None:
                inserter.watch_input(site, projected, tuple(parameter.shape))
            if assignment.output_names and parameter is not None:
                steps.project_output(site, assignment)
            else:
                inserter.project_output(site, assignment, rank)
            inserter.represent_gradient(site, assignment, rank)
    if parameter is not None:
        input_steps(steps.holders, parameter, assignment)  # for code that reads the weight as an attribute
        output_tables(steps.holders, parameter, assignment)


def _keeps_rotated(site: Site, assignment: Assignment, inserter: Inserter) -> bool:
    """Whether the product is the same with weight and input both left rotated."""
    if assignment.cushion is not None:
        return False
    if assignment.shared_rotation.is_dense or site.operation.name != "linear":
        return False
    parameter = parameter_of(inserter.gm, site.weight)
    return parameter is not None and site.arrangement(tuple(parameter.shape)) == assignment.arrangement
