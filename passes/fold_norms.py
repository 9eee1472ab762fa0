"""Fold the scales of norms into the weights that read them, and batch norms into the weights before them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from .aten import Reads, is_plain_site, spoken
from .base import Broken, Fact, Keeps, Pass
from .basis_rules import handed_on
from .fold_batch_norms import fold_batch_norms
from .norms import Norm, is_plain, norms, scale
from .raise_norms import RAISED
from .reach import Reach, note, reaches
from .sites import Site, parameter_of
from .turn import change_columns, matrix_of


def _folded(gm: fx.GraphModule) -> None:
    """The norms that were folded scale with ones."""
    paths = {reach.path for reach in reaches(gm).get("FoldNorms", ()) if reach.reached}
    for norm in norms(gm):
        if norm.path in paths and not is_plain(gm, norm):
            raise Broken("this norm was folded and scales again", at=f"%{norm.node.name} ({norm.path})")


NORMS_FOLDED = Fact("norms folded", _folded)


@dataclass(frozen=True)
class FoldNorms(Pass):
    """The scale of an RMS or layer norm goes into the columns of all weights that read it, and its weight
    becomes one (or zero, where a one is added to it). A layer norm's bias b goes into the biases of the
    readers, or where one has none stays behind as b / weight. In train() the model computes what it did.

    With `batch_norms`, a batch norm after a convolution or a linear layer goes into its weight and bias, by
    its running statistics. Its module is exchanged for one with the same keys that uses them in train() too:
    this is for inference and for training with frozen statistics.
    """

    batch_norms: bool = True
    kind: Literal["fold_norms"] = "fold_norms"

    requires: ClassVar[frozenset[Fact]] = frozenset({RAISED})
    establishes: ClassVar[frozenset[Fact]] = frozenset({NORMS_FOLDED})
    keeps: ClassVar[Keeps] = "values"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        changed, found, reads = False, [], Reads.of(gm)
        for group in grouped(gm):
            plain = is_plain(gm, group[0])
            found.append(
                Reach(group[0].path, True, "scales with ones") if plain else self.fold(gm, group, reads)
            )
            changed |= found[-1].reached and not plain
        if self.batch_norms:
            batch = fold_batch_norms(gm, reads)
            changed |= any(reach.reached for reach in batch)
            found += batch
        note(gm, self.name, found)
        return changed

    def fold(self, gm: fx.GraphModule, group: tuple[Norm, ...], reads: Reads) -> Reach:
        """Fold the norms that share one weight."""
        path = group[0].path
        readers = self.readers(gm, group, reads)
        if isinstance(readers, str):
            return Reach(path, False, readers)
        factors = scale(gm, group[0])
        assert factors is not None
        why = _move_bias(gm, group[0], readers, factors, reads)
        if why is not None:
            return Reach(path, False, why)
        for site in _once(gm, readers):
            change_columns(gm, site, lambda rows: rows * factors)
        with torch.no_grad():
            weight = parameter_of(gm, group[0].weight)
            assert weight is not None
            weight.fill_(1 - group[0].offset)
        low, high = float(factors.min()), float(factors.max())
        names = ", ".join(dict.fromkeys(site.path for site in readers))
        return Reach(path, True, f"scales of {low:.3g} to {high:.3g} went into {names}")

    def readers(self, gm: fx.GraphModule, group: tuple[Norm, ...], reads: Reads) -> list[Site] | str:
        """All weights that read a norm, or why its scale cannot go into them."""
        nodes = {norm.node for norm in group}
        if not _feed_only(reads.all_of(parameter_of(gm, group[0].weight)), nodes):
            return "its weight is read in another way too"
        found: list[Site] = []
        for norm in group:
            if norm.size != int(norm.node.meta["val"].shape[-1]):
                return "it norms parts of a vector"
            why = _collect(norm.node, reads.by_node, found)
            if why is not None:
                return why
        reading = {site.node for site in found}
        for site in found:
            elsewhere = [n for n in reads.all_of(parameter_of(gm, site.weight)) if n not in reading]
            if elsewhere:
                return f"{site.path} is read elsewhere too, by {spoken(elsewhere[0])}"
        return found or "no weight reads it"


def grouped(gm: fx.GraphModule) -> list[tuple[Norm, ...]]:
    """The norms of a graph that have a weight, those together that share one."""
    groups: dict[int, list[Norm]] = {}
    for norm in norms(gm):
        if norm.weight is not None:
            groups.setdefault(id(parameter_of(gm, norm.weight)), []).append(norm)
    return [tuple(group) for group in groups.values()]


def _feed_only(users: Iterable[fx.Node], ends: set[fx.Node]) -> bool:
    """Whether what reads a weight is nothing but the ends, directly or through casts and `1 + weight`."""
    open_nodes = list(users)
    while open_nodes:
        node = open_nodes.pop()
        if node in ends:
            continue
        if spoken(node) not in ("add", "to", "_to_copy") or not node.users:
            return False
        open_nodes += node.users
    return True


def _collect(node: fx.Node, by_node: dict[fx.Node, Site], found: list[Site]) -> str | None:
    """Add the weights that read a tensor, its channels in place, to `found`; or say what else reads it."""
    for user in node.users:
        site = by_node.get(user)
        if site is not None and site.source is node and is_plain_site(site):
            found.append(site)
        elif handed_on(user, node):
            why = _collect(user, by_node, found)
            if why is not None:
                return why
        else:
            what = f"{site.path} ({site.operation.name})" if site is not None else spoken(user)
            return f"{'it is an output' if user.op == 'output' else what + ' reads it'}"
    return None


def _once(gm: fx.GraphModule, found: list[Site]) -> list[Site]:
    """One site for each weight."""
    return list({id(parameter_of(gm, site.weight)): site for site in found}.values())


@torch.no_grad()
def _move_bias(
    gm: fx.GraphModule, norm: Norm, readers: list[Site], factors: Tensor, reads: Reads
) -> str | None:
    """Move the bias of a layer norm out of the way of its scale, or say why it cannot be."""
    bias = parameter_of(gm, norm.bias)
    if bias is None or not bool(bias.any()):
        return None
    values = bias.double()
    distinct = _once(gm, readers)
    if _have_biases(gm, readers, distinct, reads):
        for site in distinct:
            target = parameter_of(gm, site.bias)
            assert target is not None
            target.copy_(target.double() + matrix_of(gm, site) @ values)
        bias.zero_()
        return None
    left = torch.where(values == 0, 0, values / factors)
    if not bool(torch.isfinite(left.to(bias.dtype)).all()):
        return "some of its scales are zero where its bias is not, and a reader has no bias to take it"
    bias.copy_(left)
    return None


def _have_biases(gm: fx.GraphModule, readers: list[Site], distinct: list[Site], reads: Reads) -> bool:
    """Whether every reader has a bias of its own."""
    nodes = {site.node for site in readers}
    biases = [parameter_of(gm, site.bias) for site in distinct]
    if any(bias is None or not set(reads.all_of(bias)) <= nodes for bias in biases):
        return False
    pairs = {(id(parameter_of(gm, site.weight)), id(parameter_of(gm, site.bias))) for site in readers}
    return len({bias for _, bias in pairs}) == len(pairs) == len(distinct)
