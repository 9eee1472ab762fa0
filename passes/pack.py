"""The packed form: stored fields in place of parameters, and the operations that take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx
from torch.nn import functional as F

from ..runtime.entering import Enter
from ..runtime.holders import Holders
from ..runtime.packed import (
    Packed,
    decode,
    packed_embedding,
    packed_input_linear,
    packed_left_linear,
    packed_linear,
    packed_right_linear,
)
from .assignment import Assignment, assigned
from .base import Fact, Keeps, Pass
from .container import Inserter, after
from .facts import ASSIGNED, CANONICAL, PACKED
from .sites import Site, attribute, parameter_of, sites_of


@dataclass(frozen=True)
class Pack(Pass):
    """Replace every represented weight by the fields of its code, wherever `holders` (or the graph) have it.

    Linear operations that share an input, its representation and a rotation share one preparation of it,
    and those that have a right factor in common the product with it. Other uses of a packed weight get it
    decoded.
    """

    holders: Holders | None = None

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
                rank = attribute(gm, str(weight.target)).shape
                _use_packed(inserter, weight, assignment, len(rank))
                changed = True
        return changed

    def _store(self, gm: fx.GraphModule, weight: fx.Node, assignment: Assignment) -> None:
        parameter = parameter_of(gm, weight)
        if parameter is not None:
            packed = stored(parameter, assignment)
            (Holders(gm) if self.holders is None else self.holders).pack(parameter, packed)
        elif not isinstance(attribute(gm, str(weight.target)), Packed):
            raise LookupError(f"{weight.target} is neither a parameter nor packed")


def stored(parameter: Tensor, assignment: Assignment) -> Packed:
    """A weight in packed form: its calibrated code, or what encoding gives."""
    return Packed.of(parameter, assignment.weight, assignment.slots, assignment.arrangement, assignment.code)


def _use_packed(inserter: Inserter, weight: fx.Node, assignment: Assignment, rank: int) -> None:
    graph = inserter.gm.graph
    found = {site.node: site for site in sites_of(weight)}
    decoded: fx.Node | None = None
    for user in list(weight.users):
        site = found.get(user)
        if site is not None and _is_linear(site, assignment, inserter.gm):
            _linear(inserter, site, assignment)
        elif site is not None and site.node.target is F.embedding and assignment.arrangement.is_plain:
            if not assignment.weight.is_dense:
                user.target, user.args = packed_embedding, user.args[:2]
        else:
            if site is not None:
                inserter.project_input(site, assignment, rank, keep_rotated=False)
            if not assignment.weight.is_dense:
                if decoded is None:
                    with graph.inserting_after(weight):
                        decoded = graph.call_function(decode, (weight,))
                user.replace_input_with(weight, decoded)
        if site is not None:
            inserter.project_output(site, assignment, rank)


def _is_linear(site: Site, assignment: Assignment, gm: fx.GraphModule) -> bool:
    """Whether the operation is the product that kernels compute: the matrix as it is stored, nothing
    scaled."""
    shape = attribute(gm, site.path).shape
    same = site.arrangement(tuple(shape)) == assignment.arrangement
    return site.operation.name == "linear" and same and not site.node.kwargs


def _linear(inserter: Inserter, site: Site, assignment: Assignment) -> None:
    """The product with a packed weight: one operation from the input as it is where a kernel does that here,
    else what prepares the input and the product, apart."""
    inserter.project_rows(site, assignment)
    rotation, source, node = assignment.weight.rotation, site.source, site.node
    packed = attribute(inserter.gm, site.path)
    if isinstance(packed, Packed) and not packed.enters_freely and packed.takes_inputs:
        assert source is not None
        bias = () if site.bias is None else (site.bias,)
        node.target, node.args = packed_input_linear, (source, site.weight, *bias)
        return
    if source is not None and (rotation.stages or assignment.input.stages):
        entering = Enter(assignment.input, rotation)
        node.replace_input_with(source, inserter.insert(source, entering, (assignment.input, rotation)))
    if not assignment.weight.is_dense:
        bias = () if site.bias is None else (site.bias,)
        assert site.source is not None
        if isinstance(packed, Packed) and packed.splits:
            first = _right(inserter, site.source, site.weight, packed)
            node.target, node.args = packed_left_linear, (first, site.weight, *bias)
            return
        node.target, node.args = packed_linear, (site.source, site.weight, *bias)


def _right(inserter: Inserter, source: fx.Node, weight: fx.Node, packed: Packed) -> fx.Node:
    """What the right factor makes of an input: one product for all weights that have it and read this."""
    (name,) = packed.sharing.values()
    if (source, name) not in inserter.made:
        graph = inserter.gm.graph
        with graph.inserting_after(after(source)):
            read = graph.get_attr(str(weight.target))
        with graph.inserting_after(read):
            inserter.made[source, name] = graph.call_function(packed_right_linear, (source, read))
    return inserter.made[source, name]
