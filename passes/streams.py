"""Residual streams: the tensors of a graph that share one hidden basis, who reads them and who writes them.

Where x of a stream becomes x P everywhere at once, with P orthogonal, nothing outside changes if the weights
that write into it are rotated along their rows and those that read it along their columns (SliceGPT, arXiv
2401.15024, section 3; QuaRot, arXiv 2404.00456, section 4). What goes into a stream, then, is a question of
connected components, and a forgotten writer changes the values of the model.

The values of attention are such a stream too, from the projection that makes them to the one that reads them.
There P is the same in every head: `unit` is the size of the largest block that it may mix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any, Literal

from torch import fx

from .sites import Site

Side = Literal["columns", "rows"]


@dataclass(frozen=True)
class End:
    """The side of a weight, read as a matrix `[..., out, in]`, that lies in a stream.

    Its columns where it reads the stream, or looks vectors up for it; its rows where it computes them: of
    every `period` rows those from `start` to `stop`, or all. `node` is the tensor that it reads or writes.
    """

    node: fx.Node
    site: Site
    side: Side
    start: int = 0
    stop: int | None = None
    period: int | None = None

    @property
    def path(self) -> str:
        """The parameter's path."""
        return self.site.path


@dataclass(frozen=True)
class Stream:
    """Tensors in one basis.

    `unit` divides each of their last `sizes`; a rotation that is the same in all blocks of that size can be
    moved through. `added` are parameters that are added as they are. `norms` are the layer norms inside,
    which commute with rotations only once their inputs have mean zero. `barriers` say why it cannot be
    rotated, where it cannot.
    """

    tensors: tuple[fx.Node, ...]
    sizes: tuple[int, ...]
    readers: tuple[End, ...]
    writers: tuple[End, ...]
    added: tuple[fx.Node, ...]
    norms: tuple[fx.Node, ...]
    barriers: tuple[str, ...]

    @property
    def unit(self) -> int:
        """The greatest common divisor of the sizes."""
        return reduce(gcd, self.sizes)

    @property
    def ends(self) -> tuple[End, ...]:
        """Readers and writers."""
        return self.readers + self.writers

    def __str__(self) -> str:
        reads, writes = ([end.path for end in ends] for ends in (self.readers, self.writers))
        writes += [str(node.target) for node in self.added]
        why = f": {self.barriers[0]}" if self.barriers else ""
        return f"{self.unit} features, {', '.join(writes)} -> {', '.join(reads)}{why}"


def streams(gm: fx.GraphModule) -> tuple[Stream, ...]:
    """The streams of a graph that any weight reads or writes, in graph order."""
    from .stream_walk import walk  # networkx: a quarter of a second

    return walk(gm)


def segments(stream: Stream, gm: fx.GraphModule) -> tuple[frozenset[fx.Node], ...]:
    """The tensors of a stream by what lies between its norms."""
    from .stream_walk import between_norms

    return between_norms(stream, gm)


Graph = Any
"""networkx.Graph, which has no types here."""
