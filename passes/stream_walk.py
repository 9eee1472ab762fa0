"""Finds the streams of a graph: its nodes joined where they share a basis, barriers where they must not."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import networkx
from torch import fx

from .aten import Reads, is_plain_site, shape_of, spoken
from .basis_rules import CUTS, has_basis, is_cut_across, piece, reads_values, same_basis
from .norms import Norm, is_plain, norm_of
from .sites import Site, parameter_of
from .streams import End, Graph, Side, Stream


def walk(gm: fx.GraphModule) -> tuple[Stream, ...]:
    """The streams of a graph that any weight reads or writes, in graph order."""
    walked = _Walk(gm)
    for node in gm.graph.nodes:
        walked.visit(node)
    return walked.streams()


def between_norms(stream: Stream, gm: fx.GraphModule) -> tuple[frozenset[fx.Node], ...]:
    """The tensors of a stream by what lies between its norms."""
    graph: Graph = networkx.Graph()
    graph.add_nodes_from(stream.tensors)
    inside = set(stream.tensors)
    for node in stream.tensors:
        norm = norm_of(gm, node)
        if norm is None:
            graph.add_edges_from((node, other) for other in same_basis(node) if other in inside)
        elif norm.kind == "scale":
            graph.add_edge(node, norm.source)
        elif norm.bias is not None:
            graph.add_edge(node, norm.bias)
    return tuple(frozenset(part) for part in networkx.connected_components(graph))


class _Walk:
    """What is known while the graph is walked."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.graph: Graph = networkx.Graph()
        self.reads = Reads.of(gm)
        self.sites = self.reads.by_node
        self.barriers: dict[fx.Node, list[str]] = {}
        self.conflicts: dict[fx.Node, list[str]] = {}
        self.readers: list[End] = []
        self.writers: list[End] = []
        self.norms: set[fx.Node] = set()
        self.cut: set[Site] = set()

    def visit(self, node: fx.Node) -> None:
        """Join a node with its arguments, or set a barrier between them."""
        if has_basis(node):
            self.graph.add_node(node)
        if node.op == "get_attr":
            if parameter_of(self.gm, node) is None:
                self.bar(node, f"{node.target} is no parameter")
        elif node.op == "placeholder":
            self.bar(node, f"{node.target} is an input of the model")
        elif node.op == "output":
            self.bar_all(node.all_input_nodes, "it is an output of the model")
        elif node in self.sites:
            self._site(self.sites[node])
        elif (norm := norm_of(self.gm, node)) is not None:
            self._norm(norm)
        elif not self._piece(node):
            self._call(node)

    def bar(self, node: object, why: str) -> None:
        """Keep the stream of a node from being rotated."""
        if isinstance(node, fx.Node):
            self.barriers.setdefault(node, []).append(why)

    def bar_all(self, nodes: Iterable[fx.Node], why: str) -> None:
        """Keep the streams of several nodes from being rotated."""
        for node in nodes:
            self.bar(node, why)

    def _call(self, node: fx.Node) -> None:
        if is_cut_across(node):
            return  # its pieces are joined with what is cut
        shared = same_basis(node)
        for other in shared:
            self.graph.add_edge(node, other)
        reads = [a for a in node.all_input_nodes if a not in shared and reads_values(node, a)]
        self.bar_all(reads, f"{spoken(node)} reads it")
        if not shared:
            self.bar(node, f"it comes from {spoken(node)}")

    def _norm(self, norm: Norm) -> None:
        if not is_plain(self.gm, norm):
            why = f"{norm.path} scales it, which was not folded"
            self.bar_all((norm.source, norm.node), why)
            return
        self.graph.add_edge(norm.node, norm.source)
        if norm.kind == "layer":
            self.norms.add(norm.node)
        if norm.bias is not None:
            self.graph.add_edge(norm.node, norm.bias)

    def _site(self, site: Site) -> None:
        operation = site.operation
        if operation.name == "embedding":
            self.writers.append(End(site.node, site, "columns"))
            return
        if site.source is None or not is_plain_site(site):
            self.bar_all(
                (site.node, *site.node.all_input_nodes), f"{operation.name} ({site.path}) reads or writes it"
            )
            return
        rest = [a for a in site.node.all_input_nodes if a not in (site.source, site.weight, site.bias)]
        self.bar_all(rest and (site.node, *rest), f"{spoken(site.node)} adds it")
        self.readers.append(End(site.source, site, "columns"))
        self.writers.append(End(site.node, site, "rows"))
        if site.bias is not None and parameter_of(self.gm, site.bias) is None:
            self.bar_all((site.node, site.bias), f"the bias of {site.path} is computed")

    def _piece(self, node: fx.Node) -> bool:
        """A part of the rows of one weight, where a fused projection is cut (query, key and value)."""
        found = piece(node)
        if found is None:
            return False
        whole, start, stop = found
        site = self._uncut(whole)
        self.bar(whole, f"{spoken(next(iter(whole.users)))} cuts it")
        if site is None:
            self.bar(node, "it is a part of a tensor that is cut")
        else:
            self.cut.add(site)
            period = (shape_of(whole) or (0,))[-1]
            self.writers.append(End(node, site, "rows", start, stop, period))
        return True

    def _uncut(self, whole: fx.Node) -> Site | None:
        """The site whose result is cut here and read in no other way."""
        cuts = all(user.target in CUTS or piece(user) is not None for user in whole.users)
        period = (shape_of(whole) or (0,))[-1]
        node: fx.Node | None = whole if cuts else None
        while node is not None and node not in self.sites:
            before = same_basis(node)
            alone = len(before) == 1 and len(before[0].users) == 1
            node = before[0] if alone and not (shape_of(before[0]) or (1,))[-1] % period else None
        if node is None or not is_plain_site(self.sites[node]):
            return None
        bias = self.sites[node].bias
        return self.sites[node] if bias is None or parameter_of(self.gm, bias) is not None else None

    def streams(self) -> tuple[Stream, ...]:
        """The connected components that a weight reads or writes."""
        whole = {site.node for site in self.cut}  # of these only the pieces are written
        self.writers = [end for end in self.writers if end.node not in whole]
        self.graph.add_nodes_from(end.node for end in self.readers + self.writers)
        place = {node: index for index, node in enumerate(self.gm.graph.nodes)}
        joined = networkx.connected_components(self.graph)
        ordered = (tuple(sorted(part, key=place.__getitem__)) for part in joined)
        parts = sorted(ordered, key=lambda part: place[part[0]])
        number = {node: index for index, part in enumerate(parts) for node in part}
        self._bar_shared(number)
        found = [self._stream(index, part, number) for index, part in enumerate(parts)]
        return tuple(stream for stream in found if stream.ends)

    def _stream(self, index: int, part: tuple[fx.Node, ...], number: dict[fx.Node, int]) -> Stream:
        readers, writers = (
            tuple(end for end in ends if number[end.node] == index) for ends in (self.readers, self.writers)
        )
        barriers = [
            why for known in (self.barriers, self.conflicts) for node in part for why in known.get(node, ())
        ]
        sizes = sorted({shape[-1] for node in part if (shape := shape_of(node))})
        added = tuple(node for node in part if node.op == "get_attr")
        norms = tuple(node for node in part if node in self.norms)
        return Stream(part, tuple(sizes), readers, writers, added, norms, tuple(dict.fromkeys(barriers)))

    def _bar_shared(self, number: dict[fx.Node, int]) -> None:
        """A side of a weight that lies in two streams, or is read otherwise, keeps them from rotating."""
        lies_in: dict[tuple[int, Side | str], set[tuple[int, int, int | None]]] = {}
        ends = self.readers + self.writers
        for end in ends:
            for key in self._keys(end):
                lies_in.setdefault(key, set()).add((number[end.node], end.start, end.stop))
        for end in ends:
            for key in self._keys(end):
                if not _disjoint(lies_in[key]):
                    self.conflicts.setdefault(end.node, []).append(f"{end.path} lies in two bases")
            if not self._only_sites(end.site):
                self.bar(end.node, f"{end.path} is read in another way too")
        self._bar_added(number)

    def _keys(self, end: End) -> list[tuple[int, Side | str]]:
        bias = parameter_of(self.gm, end.site.bias) if end.side == "rows" else None
        own: list[tuple[int, Side | str]] = [(id(parameter_of(self.gm, end.site.weight)), end.side)]
        return own if bias is None else [*own, (id(bias), "bias")]

    def _only_sites(self, site: Site) -> bool:
        """Whether nothing reads the weight and the bias of a site but operations on weights as such."""
        weight, bias = parameter_of(self.gm, site.weight), parameter_of(self.gm, site.bias)
        as_weight = all(self._reads(user, weight, "weight") for user in self.reads.all_of(weight))
        return as_weight and (
            bias is None or all(self._reads(user, bias, "bias") for user in self.reads.all_of(bias))
        )

    def _reads(self, user: fx.Node, parameter: object, name: str) -> bool:
        site = self.sites.get(user)
        known = site is not None and (site.operation.name == "embedding" or is_plain_site(site))
        return known and parameter_of(self.gm, getattr(site, name)) is parameter

    def _bar_added(self, number: dict[fx.Node, int]) -> None:
        """A parameter that is added to a stream must be read in no other way."""
        for node, index in number.items():
            parameter = parameter_of(self.gm, node)
            if parameter is None:
                continue
            users = self.reads.all_of(parameter)
            inside = all(
                user in number and number[user] == index and user not in self.sites for user in users
            )
            if not inside or (shape_of(node) or (0,))[-1] == 1:
                self.bar(node, f"{node.target} is read in another way too")


def _disjoint(places: set[tuple[int, int, int | None]]) -> bool:
    """Whether no row lies in two places. Only different parts of one fused weight are several places."""
    if len(places) == 1:
        return True
    spans = sorted((start, stop) for _, start, stop in places if stop is not None)
    if len(spans) < len(places):
        return False
    return all(before[1] <= after[0] for before, after in pairwise(spans))
