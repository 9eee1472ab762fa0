"""The named facts of a graph, each with the one function that verifies it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from ..runtime.bank import ProjectRows, Rows
from ..runtime.errors import RequestError
from ..runtime.input_grams import InputGram
from ..runtime.projection import Project
from ..runtime.representation import Representation
from .assignment import Assignment, assigned
from .base import Broken, Fact
from .dissolve import dissolved
from .sites import Site, attribute, parameter_nodes, parameter_of, sites, sites_of


def _canonical(gm: fx.GraphModule) -> None:
    """Operations on weights are spelled one way, and each parameter is read by one node."""
    for node in gm.graph.nodes:
        if node.op == "call_module" and dissolved(attribute(gm, str(node.target)), node.args, node.kwargs):
            raise Broken("this module is called whole, not as a function of its weight", at=_at(node))
    for site in sites(gm):
        operands = {
            site.operation.names[p] for p in (site.operation.weight, site.operation.input) if p is not None
        }
        if operands & set(site.node.kwargs):
            raise Broken("the weight or the input is not a positional argument", at=_at(site.node))
    readers: dict[int, fx.Node] = {}
    for node in parameter_nodes(gm):
        first = readers.setdefault(id(parameter_of(gm, node)), node)
        if first is not node:
            raise Broken(f"this parameter is already read by %{first.name}", at=_at(node))


def _assigned(gm: fx.GraphModule) -> None:
    """Every weight of an operation carries an assignment that fits its shape."""
    for site in sites(gm):
        assignment = assigned(site.weight)
        if assignment is None:
            raise Broken("this weight has no assignment", at=_at(site.weight))
        parameter = parameter_of(gm, site.weight)
        shape = tuple(parameter.shape) if parameter is not None else ()
        try:
            assignment.weight.check(assignment.arrangement.shape(shape))
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
    for weight, assignment in _weights(gm):
        for site in sites_of(weight):
            _trainable_input(gm, site, assignment)


def _weights(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, Assignment]]:
    """Assigned parameters, and their projections in their place where there are any."""
    for node in parameter_nodes(gm):
        assignment = assigned(node)
        if assignment is not None:
            yield node, assignment
            yield from ((user, assignment) for user in node.users if project_of(gm, user) is not None)


def _trainable_input(gm: fx.GraphModule, site: Site, assignment: Assignment) -> None:
    source = _seen(gm, site.source)
    if source is None:
        return
    if not assignment.input.is_dense and not _is(gm, source, assignment.input):
        raise Broken("the input is not projected", at=_at(site.node))
    if assignment.rows is not None and not _is_rows(gm, source, assignment.rows):
        raise Broken("the input is not under its given steps", at=_at(site.node))
    if _rotated(gm, source) != _rotated(gm, site.weight):
        raise Broken("one of input and weight is rotated and the other is not", at=_at(site.node))


def _decoded(gm: fx.GraphModule) -> None:
    """No latent weight is left: parameters are decoded and frozen, and represented inputs are projected."""
    for site in sites(gm):
        assignment, parameter = assigned(site.weight), parameter_of(gm, site.weight)
        if assignment is None or parameter is None:
            continue
        if not assignment.weight.is_dense and parameter.requires_grad:
            raise Broken("this weight is still trained", at=_at(site.weight))
        _trainable_input(gm, site, assignment)


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


def _is(gm: fx.GraphModule, node: object, representation: Representation) -> bool:
    project = project_of(gm, node)
    return project is not None and project.representation == representation


def _is_rows(gm: fx.GraphModule, node: fx.Node, rows: Rows) -> bool:
    module = attribute(gm, str(node.target)) if node.op == "call_module" else None
    return isinstance(module, ProjectRows) and module.rows == rows


def _seen(gm: fx.GraphModule, source: fx.Node | None) -> fx.Node | None:
    """What is handed on as it is where moments of inputs are taken."""
    if source is None or source.op != "call_module":
        return source
    watches = isinstance(attribute(gm, str(source.target)), InputGram)
    return source.all_input_nodes[0] if watches else source


def _rotated(gm: fx.GraphModule, node: object) -> bool:
    project = project_of(gm, node)
    return project is not None and project.keep_rotated


def _at(node: fx.Node) -> str:
    """`%name (path)` of a node, the path being that of the parameter or module that it reads or calls."""
    read = [a for a in node.all_input_nodes if a.op == "get_attr"]
    weight = node if node.op in ("get_attr", "call_module") else next(iter(read), None)
    return f"%{node.name} ({weight.target})" if weight is not None else f"%{node.name}"


CANONICAL = Fact("canonical", _canonical)
ASSIGNED = Fact("assigned", _assigned)
TRAINABLE = Fact("trainable", _trainable)
DECODED = Fact("decoded", _decoded)
PACKED = Fact("packed", _packed)
