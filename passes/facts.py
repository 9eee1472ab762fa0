"""The named facts of a graph, each with the one function that verifies it."""

from __future__ import annotations

from torch import fx

from ..runtime.errors import RequestError
from ..runtime.projection import Project
from ..runtime.representation import Representation
from .assignment import Assignment, assigned
from .base import Broken, Fact
from .sites import attribute, operation_of, parameter_nodes, parameter_of, plain_owner, sites


def _canonical(gm: fx.GraphModule) -> None:
    """Linear and embedding operations are spelled one way, and each parameter is read by one node."""
    for node in gm.graph.nodes:
        if node.op == "call_module" and plain_owner(attribute(gm, str(node.target))):
            raise Broken("this module is called whole, not as a function of its weight", at=_at(node))
        if operation_of(node) and (node.kwargs or len(node.args) < 2):
            raise Broken("the weight is not the second positional argument", at=_at(node))
    readers: dict[int, fx.Node] = {}
    for node in parameter_nodes(gm):
        first = readers.setdefault(id(parameter_of(gm, node)), node)
        if first is not node:
            raise Broken(f"this parameter is already read by %{first.name}", at=_at(node))


def _assigned(gm: fx.GraphModule) -> None:
    """Every weight of a linear or embedding operation carries an assignment that fits its shape."""
    for site in sites(gm):
        assignment = assigned(site.weight)
        if assignment is None:
            raise Broken("this weight has no assignment", at=_at(site.weight))
        parameter = parameter_of(gm, site.weight)
        try:
            assignment.weight.check(tuple(parameter.shape) if parameter is not None else ())
        except RequestError as error:
            raise Broken(str(error), at=_at(site.weight)) from error


def _trainable(gm: fx.GraphModule) -> None:
    """Represented weights and inputs reach their operations through their projections, and nothing else."""
    for node in parameter_nodes(gm):
        assignment = assigned(node)
        if assignment is None or assignment.weight.is_dense:
            continue
        for user in node.users:
            if project_of(gm, user) is None or not _is(gm, user, assignment.weight):
                raise Broken(f"the latent weight is used unprojected by %{user.name}", at=_at(node))
    for node in gm.graph.nodes:
        if operation_of(node) == "linear":
            _trainable_input(gm, node)


def _trainable_input(gm: fx.GraphModule, node: fx.Node) -> None:
    assignment = assignment_of(gm, node)
    if assignment is None:
        return
    if not assignment.input.is_dense and not _is(gm, node.args[0], assignment.input):
        raise Broken("the input is not projected", at=_at(node))
    rotated = [_rotated(gm, argument) for argument in node.args[:2]]
    if rotated[0] != rotated[1]:
        raise Broken("one of input and weight is rotated and the other is not", at=_at(node))


def _decoded(gm: fx.GraphModule) -> None:
    """No latent weight is left: parameters are decoded and frozen, and represented inputs are projected."""
    for site in sites(gm):
        assignment, parameter = assigned(site.weight), parameter_of(gm, site.weight)
        if assignment is None or parameter is None:
            continue
        if not assignment.weight.is_dense and parameter.requires_grad:
            raise Broken("this weight is still trained", at=_at(site.weight))
        if site.operation == "linear":
            _trainable_input(gm, site.node)


def _packed(gm: fx.GraphModule) -> None:
    """No weight that was given a representation is stored dense."""
    for node in parameter_nodes(gm):
        assignment = assigned(node)
        if assignment is not None and not assignment.weight.is_dense:
            raise Broken("this weight is still stored dense", at=_at(node))


def project_of(gm: fx.GraphModule, node: object) -> Project | None:
    """The projection that a node calls, or None."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = attribute(gm, str(node.target))
    return module if isinstance(module, Project) else None


def assignment_of(gm: fx.GraphModule, operation: fx.Node) -> Assignment | None:
    """The assignment of the weight that an operation reads, directly or through its projection."""
    weight = operation.args[1]
    if isinstance(weight, fx.Node) and project_of(gm, weight) is not None:
        weight = weight.args[0]
    return assigned(weight)


def _is(gm: fx.GraphModule, node: object, representation: Representation) -> bool:
    project = project_of(gm, node)
    return project is not None and project.representation == representation


def _rotated(gm: fx.GraphModule, node: object) -> bool:
    project = project_of(gm, node)
    return project is not None and project.keep_rotated


def _at(node: fx.Node) -> str:
    """`%name (path)` of a node, the path being that of the parameter or module that it reads or calls."""
    weight = (
        node
        if node.op in ("get_attr", "call_module")
        else next((a for a in node.args[1:2] if isinstance(a, fx.Node) and a.op == "get_attr"), None)
    )
    return f"%{node.name} ({weight.target})" if weight is not None else f"%{node.name}"


CANONICAL = Fact("canonical", _canonical)
ASSIGNED = Fact("assigned", _assigned)
TRAINABLE = Fact("trainable", _trainable)
DECODED = Fact("decoded", _decoded)
PACKED = Fact("packed", _packed)
