"""Stateless modules that passes put into a graph, one for each thing they are applied to."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, cast

from torch import fx, nn

from ..runtime.bank import ProjectRows
from ..runtime.codec import ProjectCodec
from ..runtime.cushion import Cushion
from ..runtime.gradient import RepresentedGradient
from ..runtime.input_grams import InputGram
from ..runtime.projection import Project
from .assignment import Assignment
from .input_rows import rows_at, why_no_rows
from .sites import Site, attribute

CONTAINER = "rhoc"


class Container(nn.Module):
    """Holds the modules that passes insert; no parameters, no buffers, hence no `state_dict` keys."""


@dataclass
class Inserter:
    """Inserts module calls behind nodes; the same call on the same node is made once and shared."""

    gm: fx.GraphModule
    made: dict[tuple[fx.Node, Hashable], fx.Node] = field(default_factory=dict)
    replaced: int = 0

    @property
    def count(self) -> int:
        """How many calls were inserted or replaced."""
        return len(self.made) + self.replaced

    def project(self, source: fx.Node, projection: Project, *learned: fx.Node) -> fx.Node:
        """The projected `source`; itself when nothing is to be done. `learned` are what it learns: nodes that
        read parameters."""
        if projection.is_idle:
            return source
        return self.insert(source, projection, (projection.key, learned), *learned)

    def project_input(self, site: Site, assignment: Assignment, rank: int, *, keep_rotated: bool) -> None:
        """Route the input of an operation through its projection; `rank` is that of the weight."""
        source = site.source
        if source is not None and assignment.rows is not None:
            self.project_rows(site, assignment)
        if source is None or assignment.input.is_dense:
            return
        dimension = site.operation.channel_of(rank)
        projection = assignment.project_input(dimension, keep_rotated=keep_rotated)
        site.node.replace_input_with(source, self.project(source, projection))

    def project_rows(self, site: Site, assignment: Assignment) -> None:
        """Route the input of an operation through given steps that an index chooses, where there are any."""
        if site.source is not None and assignment.rows is not None:
            module = ProjectRows(assignment.rows)
            site.node.replace_input_with(site.source, self.insert(site.source, module, module.key))

    def watch_input(self, site: Site, projected: fx.Node, shape: tuple[int, ...]) -> None:
        """Route the input of an operation on a weight of this shape through what takes its moments for the
        projection of the weight, where inputs are rows at all."""
        if site.source is None or why_no_rows(site, shape):
            return
        projection = attribute(self.gm, str(projected.target))
        assert isinstance(projection, Cushion)
        watch = InputGram(rows_at(site, shape), projection.rule.block)
        projection.watches = (*projection.watches, watch)
        site.node.replace_input_with(site.source, self.insert(site.source, watch, site.node))

    def project_output(self, site: Site, assignment: Assignment, rank: int) -> None:
        """Route what an operation gives through its projection."""
        if assignment.output.is_dense:
            return
        dimension = site.operation.features_of(rank)
        if assignment.codec is not None:
            module = ProjectCodec(assignment.codec, dimension)
            return self.route_output(site, lambda node: self.insert(node, module, module.key))
        projection = Project(
            assignment.output,
            assignment.output_estimators,
            schedules=assignment.scheduled("output_activations"),
            dimension=dimension,
        )
        self.route_output(site, lambda node: self.project(node, projection))

    def route_output(self, site: Site, through: Callable[[fx.Node], fx.Node]) -> None:
        """Have what reads the result of an operation read what `through` makes of it."""
        users = list(site.node.users)
        projected = through(site.node)
        for user in users:
            user.replace_input_with(site.node, projected)

    def represent_gradient(self, site: Site, assignment: Assignment, rank: int) -> None:
        """Have the backward pass of an operation read what it multiplies in representations."""
        if assignment.backward.is_dense or site.operation.input is None:
            return
        module = RepresentedGradient(cast(Any, site.node.target), site.operation, rank, assignment.backward)
        site.node.target, site.node.op = self._install(module), "call_module"
        self.replaced += 1

    def insert(self, source: fx.Node, module: nn.Module, key: Hashable, *others: fx.Node) -> fx.Node:
        """The node that calls `module` on `source`, and on others that are known at the start of the graph;
        `key` says which modules do the same."""
        if (source, key) not in self.made:
            target = self._install(module)
            with self.gm.graph.inserting_after(after(source, others)):
                self.made[source, key] = self.gm.graph.call_module(target, (source, *others))
        return self.made[source, key]

    def _install(self, module: nn.Module) -> str:
        name = CONTAINER
        while not isinstance(getattr(self.gm, name, None), Container | None):
            name += "_"
        if name not in self.gm._modules:
            self.gm.add_module(name, Container())
        number = str(len(self.gm.get_submodule(name)._modules))
        self.gm.get_submodule(name).add_module(number, module)
        return f"{name}.{number}"


def after(source: fx.Node, others: tuple[fx.Node, ...] = ()) -> fx.Node:
    """Where to insert behind `source`: behind the last input when it is an input, since inputs come first,
    and then behind what is read at the start of the graph where some of `others` are."""
    if source.op != "placeholder":
        return source
    while source.next.op == "placeholder" or (others and source.next.op == "get_attr"):
        source = source.next
    return source
