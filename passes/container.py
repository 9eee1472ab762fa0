"""Stateless modules that passes put into a graph, one for each thing they are applied to."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import fx, nn

from ..runtime.projection import Project
from .assignment import Assignment

CONTAINER = "rhoc"


class Container(nn.Module):
    """Holds the modules that passes insert; no parameters, no buffers, hence no `state_dict` keys."""


@dataclass
class Inserter:
    """Inserts module calls behind nodes; the same call on the same node is made once and shared."""

    gm: fx.GraphModule
    made: dict[tuple[fx.Node, Hashable], fx.Node] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many calls were inserted."""
        return len(self.made)

    def project(self, source: fx.Node, projection: Project) -> fx.Node:
        """The projected `source`; itself when nothing is to be done."""
        if projection.representation.is_dense:
            return source
        key = (projection.representation, projection.estimators, projection.keep_rotated)
        return self.insert(source, projection, key)

    def project_input(self, linear: fx.Node, assignment: Assignment, keep_rotated: bool) -> None:
        """Route the input of a linear operation through its projection."""
        source = linear.args[0]
        if isinstance(source, fx.Node):
            projection = Project(assignment.input, assignment.input_estimators, keep_rotated=keep_rotated)
            linear.update_arg(0, self.project(source, projection))

    def insert(self, source: fx.Node, module: nn.Module, key: Hashable) -> fx.Node:
        """The node that calls `module` on `source`; `key` says which modules do the same."""
        if (source, key) not in self.made:
            target = self._install(module)
            with self.gm.graph.inserting_after(_after(source)):
                self.made[source, key] = self.gm.graph.call_module(target, (source,))
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


def _after(source: fx.Node) -> fx.Node:
    """Where to insert behind `source`: behind the last input when it is an input, since inputs come first."""
    while source.op == "placeholder" and source.next.op == "placeholder":
        source = source.next
    return source
