"""Record what the inputs of every weight look like on calibration batches, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..runtime.errors import RequestError, WorkError
from .aten import value_of
from .base import Broken, Fact, Pass
from .channels import Channels, channels_of
from .fold_norms import NORMS_FOLDED
from .fold_rotations import ROTATIONS_FOLDED
from .reach import Reach, note
from .sites import parameter_of, sites

_KEY = "rhoc.ranges"
_SEED = 0


@dataclass(frozen=True, eq=False)
class ChannelRanges:
    """Statistics of one input, float64 `[channels]` each, over `rows` rows.

    `sample` are some of its inputs in its own dtype: `[n, channels]`, for convolutions `[n, channels,
    *positions]`; empty when none were asked for.
    """

    minimum: Tensor
    maximum: Tensor
    mean: Tensor
    absmean: Tensor
    rows: int
    sample: Tensor

    @property
    def absmax(self) -> Tensor:
        """The largest magnitude of each channel."""
        return torch.maximum(self.minimum.abs(), self.maximum.abs())

    def divided(self, factors: Tensor) -> ChannelRanges:
        """The statistics of the input divided by positive factors `[channels]`."""
        along = factors.to(self.sample.device).reshape(-1, *([1] * (self.sample.dim() - 2)))
        return replace(
            self,
            minimum=self.minimum / factors,
            maximum=self.maximum / factors,
            mean=self.mean / factors,
            absmean=self.absmean / factors,
            sample=(self.sample.double() / along).to(self.sample.dtype),
        )


def ranges_of(node: fx.Node) -> ChannelRanges | None:
    """What was recorded on the node of an operation, or None."""
    found = node.meta.get(_KEY)
    return found if isinstance(found, ChannelRanges) else None


def set_ranges(node: fx.Node, ranges: ChannelRanges) -> None:
    """Record statistics on the node of the operation whose input they describe."""
    node.meta[_KEY] = ranges


def readable(gm: fx.GraphModule) -> list[Channels]:
    """The sites whose input channels can be told apart, in graph order."""
    found = (channels_of(gm, site) for site in sites(gm))
    return [channels for channels in found if isinstance(channels, Channels)]


def _recorded(gm: fx.GraphModule) -> None:
    """Every weight with input channels has their statistics."""
    for channels in readable(gm):
        site, parameter = channels.site, parameter_of(gm, channels.site.weight)
        ranges = ranges_of(site.node)
        at = f"%{site.node.name} ({site.path})"
        if ranges is None:
            raise Broken("no statistics of this input were recorded", at=at)
        expected = channels.count(tuple(parameter.shape)) if parameter is not None else 0
        if ranges.minimum.numel() != expected:
            message = (
                f"statistics of {ranges.minimum.numel()} channels were recorded, and the input has {expected}"
            )
            raise Broken(message, at=at)


RANGES = Fact("ranges", _recorded)


@dataclass(frozen=True, eq=False)
class RecordRanges(Pass):
    """Run the graph on calibration batches and note `ChannelRanges` on the node of every weight's operation.

    `batches` are the inputs of the graph, batch by batch, in the shapes that the graph was made for (it
    holds for no others). `samples` rows of every input are kept, drawn uniformly from all with a fixed seed;
    weights that read the same tensor share them. Memory does not grow with the number of batches.

    Raises RequestError when there are no batches or their shapes do not fit, WorkError when an input is not
    finite.
    """

    batches: Sequence[Sequence[Tensor]]
    samples: int = 256

    establishes: ClassVar[frozenset[Fact]] = frozenset({RANGES})
    follows: ClassVar[frozenset[Fact]] = frozenset({NORMS_FOLDED, ROTATIONS_FOLDED})

    def rewrite(self, gm: fx.GraphModule) -> bool:
        check_batches(gm, self.batches)
        readers = readable(gm)
        watch = _Watch(gm, readers, self.samples)
        with torch.no_grad():
            for batch in self.batches:
                watch.run(*batch)
        found = watch.results()
        for channels in readers:
            set_ranges(channels.site.node, found[_key(channels)])
        recorded = {channels.site.node for channels in readers}
        note(gm, self.name, (_reach(gm, site.node in recorded, site) for site in sites(gm)))
        return False


def _reach(gm: fx.GraphModule, recorded: bool, site: Any) -> Reach:
    ranges = ranges_of(site.node)
    if recorded and ranges is not None:
        return Reach(site.path, True, f"{ranges.rows} rows of {ranges.minimum.numel()} channels")
    return Reach(site.path, False, str(channels_of(gm, site)))


def check_batches(gm: fx.GraphModule, batches: Sequence[Sequence[Tensor]]) -> None:
    """Raise RequestError unless each batch has the tensors that the graph takes."""
    inputs = [value_of(node) for node in gm.graph.nodes if node.op == "placeholder"]
    expected = [None if each is None else (tuple(each.shape), each.dtype) for each in inputs]
    if not batches:
        raise RequestError("there are no calibration batches", advice="give at least one")
    for number, batch in enumerate(batches):
        given = [(tuple(tensor.shape), tensor.dtype) for tensor in batch]
        fits = len(given) == len(expected) and all(
            want is None or want == have for want, have in zip(expected, given, strict=True)
        )
        if not fits:
            raise RequestError(
                f"calibration batch {number} is {_texts(given)}, the graph was made for {_texts(expected)}",
                advice="give batches of the shapes and dtypes of the example inputs",
            )


def _texts(found: Sequence[tuple[tuple[int, ...], torch.dtype] | None]) -> str:
    texts = [f"{str(f[1]).removeprefix('torch.')}{list(f[0])}" if f else "anything" for f in found]
    return ", ".join(texts) or "nothing"


_Key = tuple[fx.Node, int, int]


def _key(channels: Channels) -> _Key:
    """Sites with the same key read the same channels of the same tensor."""
    site = channels.site
    assert site.source is not None
    return site.source, site.operation.channel, channels.lead


class _Watch(fx.Interpreter):
    """Runs a graph and adds up what weights read."""

    def __init__(self, gm: fx.GraphModule, readers: list[Channels], samples: int) -> None:
        super().__init__(gm)
        self.totals: dict[_Key, _Total] = {}
        self.first: dict[fx.Node, _Key] = {}
        for channels in readers:
            if _key(channels) not in self.totals:
                self.totals[_key(channels)] = _Total(channels, samples)
                self.first[channels.site.node] = _key(channels)

    def run_node(self, n: fx.Node) -> Any:
        """The result of a node, its input added first."""
        key = self.first.get(n)
        if key is not None:
            self.totals[key].add(self.env[key[0]])
        return super().run_node(n)

    def results(self) -> dict[_Key, ChannelRanges]:
        """The statistics of every tensor that weights read."""
        return {key: total.result() for key, total in self.totals.items()}


@dataclass
class _Total:
    """Running statistics of one input, and a uniform sample of it."""

    channels: Channels
    samples: int
    sums: list[Tensor] = field(default_factory=list)
    rows: int = 0
    kept: Tensor | None = None
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(_SEED))

    def add(self, x: Tensor) -> None:
        """One more batch of the input."""
        rows = self.channels.rows(x)
        wide = rows.double()
        found = [wide.amin(0), wide.amax(0), wide.sum(0), wide.abs().sum(0)]
        if not bool(torch.isfinite(found[3]).all()):
            site = self.channels.site
            raise WorkError(
                "an input is NaN or infinite on calibration data", where=f"%{site.node.name} ({site.path})"
            )
        if self.sums:
            old = self.sums
            found = [
                torch.minimum(old[0], found[0]),
                torch.maximum(old[1], found[1]),
                *(a + b for a, b in zip(old[2:], found[2:], strict=True)),
            ]
        self.sums = found
        self.rows += rows.shape[0]
        self._draw(*self._items(x, rows))

    def _items(self, x: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """What is sampled, and how many of it: rows, or whole inputs of a convolution."""
        if not self.channels.site.operation.name.startswith("conv"):
            return rows, self.samples
        positions = max(rows.shape[0] // max(x.shape[0], 1), 1)
        return x, -(-self.samples // positions)

    def _draw(self, items: Tensor, count: int) -> None:
        """Keep those with the largest of as many random numbers: a uniform sample of all so far."""
        keys = torch.rand(items.shape[0], generator=self.generator, dtype=torch.float64).to(items.device)
        if self.kept is not None:
            items, keys = torch.cat((self.kept, items)), torch.cat((self.keys, keys))
        best = keys.argsort(descending=True)[:count]
        self.kept, self.keys = items[best].detach().clone(), keys[best]

    def result(self) -> ChannelRanges:
        """The statistics."""
        assert self.kept is not None
        minimum, maximum, total, magnitude = (each.cpu() for each in self.sums)
        return ChannelRanges(minimum, maximum, total / self.rows, magnitude / self.rows, self.rows, self.kept)
