"""Weights whose input channels can be scaled for free: what produces the input takes the inverse.

Y = (X / s)(s W): the producer's parameters are divided by s, and all weights that read the tensor, directly
or through operations that hand factors on, have their columns multiplied by s.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from .aten import Reads
from .channels import Channels, channels_of
from .labels import NONE, Labels, blocked, follow, is_followed, keys_in, name_of
from .producers import Producer, producers, read_once, start, times
from .reach import Reach
from .sites import Site, parameter_of


@dataclass(frozen=True, eq=False)
class Member:
    """A weight that reads what a producer made. `keys` has for each of its input channels the number of the
    producer's factor, -1 where it has none."""

    channels: Channels
    keys: Tensor

    @property
    def site(self) -> Site:
        """The operation that reads."""
        return self.channels.site

    def factors(self, scales: Tensor) -> Tensor:
        """From the producer's factors `[keys]` those of the input channels `[channels]`, 1 where none."""
        return torch.where(self.keys == NONE, 1.0, scales[self.keys.clamp_min(0)])

    def gathered(self, channels: Tensor, count: int, reduce: str, start: float) -> Tensor:
        """From numbers of the input channels one for each of `count` keys: `reduce` (amax, amin) over the
        channels that share a key, `start` where there is none."""
        found = torch.full((count + 1,), start, dtype=channels.dtype)
        found.scatter_reduce_(0, torch.where(self.keys == NONE, count, self.keys), channels, reduce)
        return found[:count]


@dataclass(frozen=True, eq=False)
class Group:
    """A producer and all that reads it. Only keys that are `free` may have a factor other than 1."""

    producer: Producer
    members: tuple[Member, ...]
    free: Tensor

    def __str__(self) -> str:
        return f"{self.producer.path} -> {', '.join(m.site.path for m in self.members)}"


@dataclass
class _Search:
    """How far the channels of one producer come."""

    gm: fx.GraphModule
    producer: Producer
    near: set[fx.Node]
    read: Reads
    order: dict[fx.Node, int]
    known: dict[fx.Node, Labels] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    stops: list[tuple[Tensor, str]] = field(default_factory=list)

    def run(self) -> None:
        """Visit readers in graph order until no labels travel on, or all channels are stopped."""
        waiting: list[tuple[int, fx.Node]] = []
        self._arrive(self.producer.node, start(self.producer), waiting)
        seen: set[fx.Node] = set()
        while waiting and not bool(self._stopped().all()):
            _, node = heapq.heappop(waiting)
            if node in seen:
                continue
            seen.add(node)
            found = self._visit(node)
            if isinstance(found, str):
                self._stop(node.all_input_nodes, found)
            elif found is not None:
                self._arrive(node, found, waiting)

    def _arrive(self, node: fx.Node, labels: Labels, waiting: list[tuple[int, fx.Node]]) -> None:
        self.known[node] = labels
        for user in node.users:
            heapq.heappush(waiting, (self.order[user], user))

    def _visit(self, node: fx.Node) -> Labels | str | None:
        """Labels of the result, why channels stop here, or None for neither: a weight reads them."""
        if node in self.read.by_node:
            return self._join(self.read.by_node[node])
        if node in self.near:
            return f"{name_of(node)} %{node.name}, which takes factors itself"
        arguments, reason = blocked(node, self.known)
        if arguments:
            self._stop(arguments, reason)
        return follow(node, self.known)

    def _join(self, site: Site) -> str | None:
        """Make a site a member, or say why it cannot be one."""
        channels = channels_of(self.gm, site)
        if isinstance(channels, str):
            return channels
        labels = self.known.get(site.source)  # type: ignore[arg-type]
        if not isinstance(labels, Tensor) or times(site.node, self.known) != 1:
            return f"something other than the input of {site.path}"
        if not read_once(self.gm, self.read, site.weight):
            return f"{site.path}, which is also read elsewhere"
        keys = channels.label(labels)
        if keys is None:
            return f"{site.path}, which mixes channels"
        self.members.append(Member(channels, keys))
        return None

    def _stop(self, arguments: list[fx.Node], reason: str) -> None:
        mask = torch.zeros(self.producer.count, dtype=torch.bool)
        for argument in arguments:
            if argument in self.known:
                mask |= keys_in(self.known[argument], self.producer.count)
        self.stops.append((mask, reason))

    def _stopped(self) -> Tensor:
        stopped = torch.zeros(self.producer.count, dtype=torch.bool)
        for mask, _ in self.stops:
            stopped |= mask
        return stopped

    def group(self) -> Group | None:
        """Producer and members, those alone that have a channel that is not stopped; None without any."""
        reached = torch.zeros(self.producer.count, dtype=torch.bool)
        for member in self.members:
            reached |= keys_in(member.keys, self.producer.count)
        free = reached & ~self._stopped()
        kept = tuple(m for m in self.members if bool((free & keys_in(m.keys, self.producer.count)).any()))
        return Group(self.producer, kept, free) if kept else None

    def reasons(self) -> Iterator[tuple[fx.Node, str]]:
        """Why sites that the channels came to are not scaled, by node."""
        for node, site in self.read.by_node.items():
            labels = self.known.get(site.source)  # type: ignore[arg-type]
            if isinstance(labels, Tensor):
                keys = keys_in(labels, self.producer.count)
                found = next((reason for mask, reason in self.stops if bool((mask & keys).any())), "")
                if found:
                    yield node, f"{self.producer.path} also feeds {found}"


def scalable(gm: fx.GraphModule) -> tuple[tuple[Group, ...], tuple[Reach, ...]]:
    """All groups of a graph in order of their producers, and what is in none with the reason.

    Nodes need the shapes that export notes on them. A weight may belong to several groups, each with channels
    of its own: the halves of a concatenation.
    """
    read = Reads.of(gm)
    order = {node: number for number, node in enumerate(gm.graph.nodes)}
    made = producers(gm, read)
    near = {node for node, found in made.items() if isinstance(found, Producer) and node not in read.by_node}
    groups, reasons, ends = [], dict[fx.Node, str](), dict[fx.Node, str]()
    for node in sorted(made, key=order.__getitem__):
        producer = made[node]
        if isinstance(producer, str):
            continue
        search = _Search(gm, producer, near, read, order)
        search.run()
        reasons.update(search.reasons())
        if search.stops:
            ends[node] = f"{producer.path} also feeds {search.stops[0][1]}"
        group = search.group()
        if group is not None:
            groups.append(group)
    inside = {member.site.node for group in groups for member in group.members}
    left = [site for node, site in read.by_node.items() if node not in inside]
    return tuple(groups), tuple(
        Reach(site.path, False, reasons.get(site.node) or _why(gm, site, made, ends)) for site in left
    )


def _why(
    gm: fx.GraphModule, site: Site, made: dict[fx.Node, Producer | str], ends: dict[fx.Node, str]
) -> str:
    """Why no producer's channels came to a site at all."""
    channels = channels_of(gm, site)
    if isinstance(channels, str):
        return channels
    node = site.source
    while isinstance(node, fx.Node) and node.op == "call_function":
        refused = made.get(node)
        if isinstance(refused, str):
            return f"its input comes from %{node.name}: {refused}"
        if node in ends:
            return ends[node]
        if not is_followed(node):
            break
        node = next(iter(_tensors(gm, node)), None)
    if node is None or node.op != "call_function":
        return "its input is an input of the model" if node is not None else "its input has no producer"
    return f"its input comes through {name_of(node)}"


def _tensors(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The arguments of an operation that are not parameters."""
    return [a for a in node.all_input_nodes if parameter_of(gm, a) is None]
