"""Parameters of learned steps: made beside the weights they belong to, and read in graphs.

They are `weight_step` beside `weight`, and `weight_input_step` for the inputs of its operation: a step
belongs to a weight, wherever and however often that is read, and has its name in `state_dict` whatever was
captured.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from ..runtime.holders import Holders
from ..runtime.learned import first_steps, input_names, unknown_steps, weight_names
from .assignment import Assignment
from .code_fields import weight_fields
from .container import Inserter
from .sites import Site, attribute


def weight_steps(holders: Holders, weight: nn.Parameter, assignment: Assignment) -> tuple[Tensor, ...]:
    """The learned parameters of a weight (or its fields, where these are trained), made where it has none
    yet; nothing where nothing is learned."""
    if assignment.code_fields is not None:
        return weight_fields(holders, weight, assignment)
    learned = assignment.learned_weight
    if learned is None:
        return ()
    (name,) = weight_names(learned)
    found = holders.beside(weight, name)
    if found is None:
        value = weight.detach() if assignment.latent is None else assignment.latent.weight(weight.detach())
        matrix = assignment.arrangement.matrix(value)
        found = first_steps(assignment.weight, learned, matrix, weight.requires_grad)
        holders.put_beside(weight, name, found)
    return (found,)


def input_steps(
    holders: Holders, weight: nn.Parameter, assignment: Assignment, shared: tuple[Tensor, ...] = ()
) -> tuple[Tensor, ...]:
    """The learned parameters of the inputs of a weight's operation: its own, else `shared` ones, or new."""
    found = []
    for position, name in enumerate(input_names(assignment.learned_input)):
        own = holders.beside(weight, name)
        if own is None:
            own = shared[position] if shared else _first_input(weight, assignment, position)
            holders.put_beside(weight, name, own)
        found.append(own)
    return tuple(found)


def _first_input(weight: nn.Parameter, assignment: Assignment, position: int) -> Tensor:
    """The steps (0) or offsets (1) of inputs as calibration found them, else unknown."""
    count = 1 if assignment.bank is None else assignment.bank.size
    found = unknown_steps(weight, count)
    if assignment.measured is not None:
        learned = assignment.learned_input
        assert learned is not None
        values = found.new_tensor(assignment.measured[position])
        top = learned.grid_of(assignment.input).levels.levels[-1]
        found.data.copy_(learned.start(values, top) if position == 0 else values)
    return found


@dataclass
class LearnedSteps:
    """The learned parameters that one graph reads, each by one node at its start."""

    inserter: Inserter
    holders: Holders
    _nodes: dict[int, fx.Node] = field(default_factory=dict)
    _of_inputs: dict[tuple[fx.Node, Hashable], tuple[Tensor, ...]] = field(default_factory=dict)

    def of_weight(
        self, weight: fx.Node, parameter: nn.Parameter, assignment: Assignment
    ) -> tuple[fx.Node, ...]:
        """The nodes that read the steps of a weight."""
        steps = weight_steps(self.holders, parameter, assignment)
        return self._read(weight, steps, assignment.beside(parameter))

    def project_input(self, site: Site, assignment: Assignment, *, keep_rotated: bool) -> None:
        """Route the input of an operation through its projection.

        Weights that read one input alike share its step, unless each has one of its own already.
        """
        source = site.source
        if source is None:
            return
        parameter = attribute(self.inserter.gm, site.path)
        dimension = site.operation.channel_of(parameter.dim())
        projection = assignment.project_learned_input(dimension, keep_rotated=keep_rotated)
        key = (source, projection.key)
        steps = input_steps(self.holders, parameter, assignment, self._of_inputs.get(key, ()))
        self._of_inputs.setdefault(key, steps)
        nodes = self._read(site.weight, steps, input_names(assignment.learned_input))
        site.node.replace_input_with(source, self.inserter.project(source, projection, *nodes))

    def _read(
        self, weight: fx.Node, steps: tuple[Tensor, ...], names: tuple[str, ...]
    ) -> tuple[fx.Node, ...]:
        return tuple(
            self._node(step, f"{weight.target}_{name}") for step, name in zip(steps, names, strict=True)
        )

    def _node(self, step: Tensor, path: str) -> fx.Node:
        if id(step) not in self._nodes:
            graph = self.inserter.gm.graph
            inputs = [node for node in graph.nodes if node.op == "placeholder"]
            first = next(iter(graph.nodes))
            with graph.inserting_after(inputs[-1]) if inputs else graph.inserting_before(first):
                self._nodes[id(step)] = graph.get_attr(path)
        return self._nodes[id(step)]
