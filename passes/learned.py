"""Parameters of learned steps: made beside the weights they belong to, and read in graphs.

They are `weight_step` beside `weight`, and `weight_input_step` for the inputs of its operation: a step
belongs to a weight, wherever and however often that is read, and has its name in `state_dict` whatever was
captured.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from ..runtime.cushion import DIRECTIONS, Cushion
from ..runtime.holders import Holders
from ..runtime.learned import first_steps, input_names, unknown_steps, weight_names
from ..runtime.stages.precision import wide
from ..runtime.table_projection import first_tables
from ..runtime.uncertain import first_beside
from .assignment import Assignment
from .code_fields import weight_fields
from .container import Inserter
from .sites import Site, attribute


def weight_steps(holders: Holders, weight: nn.Parameter, assignment: Assignment) -> tuple[Tensor, ...]:
    """The learned parameters of a weight (or its fields, where these are trained), made where it has none
    yet; nothing where nothing is learned."""
    if assignment.code_fields is not None:
        return weight_fields(holders, weight, assignment)
    if assignment.uncertain:
        return _uncertain(holders, weight, assignment)
    directions = weight_directions(holders, weight, assignment)
    learned = assignment.learned_weight
    if learned is None:
        return directions
    (name,) = weight_names(learned)
    found = holders.beside(weight, name)
    if found is None:
        value = weight.detach() if assignment.latent is None else assignment.latent.weight(weight.detach())
        matrix = assignment.arrangement.matrix(value)
        found = first_steps(assignment.weight, learned, matrix, weight.requires_grad, assignment.code)
        holders.put_beside(weight, name, found)
    return (*directions, found)


def weight_directions(holders: Holders, weight: nn.Parameter, assignment: Assignment) -> tuple[Tensor, ...]:
    """The directions of a weight's inputs that training keeps exact, made where it has none yet: as they were
    calibrated, else zeros; nothing where none are kept."""
    if assignment.cushion is None:
        return ()
    found = holders.beside(weight, DIRECTIONS)
    if found is None:
        *leading, _, size = assignment.arrangement.shape(tuple(weight.shape))
        projection = assignment.project_weight("")
        assert isinstance(projection, Cushion)
        found = weight.detach().new_zeros(
            *leading, size, min(projection.most, size), dtype=wide(weight.dtype)
        )
        if assignment.directions is not None:
            found.copy_(assignment.directions)
        holders.put_beside(weight, DIRECTIONS, found)
    return (found,)


def _uncertain(holders: Holders, weight: nn.Parameter, assignment: Assignment) -> tuple[Tensor, ...]:
    """What a Gaussian weight, or one that is fixed in rounds, keeps beside it; made where it is not yet."""
    for name, new in first_beside(assignment.weight_estimators, weight).items():
        if holders.beside(weight, name) is None:
            holders.put_beside(weight, name, new)
    found = [holders.beside(weight, name) for name in assignment.uncertain]
    return tuple(tensor for tensor in found if tensor is not None)


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


def output_tables(holders: Holders, weight: nn.Parameter, assignment: Assignment) -> tuple[Tensor, ...]:
    """The tables that a weight's outputs are encoded with, and what belongs to them, made where it has none
    yet; nothing where none are trained."""
    names = assignment.output_names
    if names and holders.beside(weight, names[0]) is None:
        new = first_tables(assignment.output, assignment.output_estimators, weight)
        for name, tensor in zip(names, new, strict=True):
            holders.put_beside(weight, name, tensor)
    found = [holders.beside(weight, name) for name in names]
    return tuple(tensor for tensor in found if tensor is not None)


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

    def project_output(self, site: Site, assignment: Assignment) -> None:
        """Route what an operation gives through its projection onto trained tables."""
        parameter = attribute(self.inserter.gm, site.path)
        tables = output_tables(self.holders, parameter, assignment)
        nodes = self._read(site.weight, tables, assignment.output_names)
        projection = assignment.project_tables(site.operation.features_of(parameter.dim()), site.path)
        self.inserter.route_output(site, lambda node: self.inserter.project(node, projection, *nodes))

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
