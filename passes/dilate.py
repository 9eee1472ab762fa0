"""Grow the columns of a weight that do not reach the ends of its grid, and shrink the inputs in return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from .base import Fact, Keeps, Pass
from .fold_norms import NORMS_FOLDED
from .fold_rotations import ROTATIONS_FOLDED
from .output_error import asks
from .reach import Reach, note
from .record_ranges import readable
from .rescale import Ledger
from .scalable import Group, scalable

_FULL = 1 + 1e-6  # factors up to this are those of channels that hold an end of some row


@dataclass(frozen=True)
class Dilate(Pass):
    """Weight dilation of DilateQuant (Liu et al., arXiv 2409.14307, Eq. 10-12), data-free.

    Channels that hold the maximum or the minimum of some row (the set A) keep s = 1. Every other column
    grows by the largest s with which no entry passes its row's ends: s = min over rows of the row's maximum
    over the column's positive entry and its minimum over the negative one. So grids with a scale per row or
    per tensor stay as they are while inputs shrink; those of smaller groups may grow. Weights that read one
    tensor share s: A is the union, s the minimum. A row without negative entries has no minimum to keep, for
    grids contain zero. Columns of zeros keep s = 1. Where the producer is a weight, its rows are divided by s
    as a whole.

    `symmetric` asks the rows' largest magnitudes instead of both ends, for grids that are symmetric.
    `limit` is the largest s.
    """

    symmetric: bool = False
    limit: float = 1e3
    kind: Literal["dilate"] = "dilate"

    breaks: ClassVar[frozenset[Fact]] = frozenset({NORMS_FOLDED})
    follows: ClassVar[frozenset[Fact]] = frozenset({NORMS_FOLDED, ROTATIONS_FOLDED})
    keeps: ClassVar[Keeps] = "values"

    def __post_init__(self) -> None:
        if not 1 <= self.limit < float("inf"):
            raise ValueError(f"limit {self.limit} is not a number of at least 1; 1000 is usual")

    def rewrite(self, gm: fx.GraphModule) -> bool:
        groups, left = scalable(gm)
        ledger = Ledger(gm)
        room = {c.site.node: self.column_scales(ledger.blocks(c)) for c in readable(gm)}
        found = []
        for group in groups:
            scales = self.scales(group, room)
            grown = int((scales > _FULL).sum())
            if grown:
                ledger.scale(group, scales)
                ledger.write()
            for member in group.members:
                text = _text(group, scales, room[member.site.node])
                found.append(Reach(member.site.path, grown > 0, text))
        held = {c.site.path: f"; {_saturated(room[c.site.node])}" for c in readable(gm)}
        rest = (Reach(each.path, False, each.what + held.get(each.path, "")) for each in left)
        note(gm, self.name, (*found, *rest))
        return any(reach.reached for reach in found)

    def scales(self, group: Group, room: Mapping[fx.Node, Tensor]) -> Tensor:
        """The factor of each key of a group, float64 `[keys]`, at least 1. `room` has for each site how much
        its columns can grow; that stays true while others grow, and when rows are divided as a whole."""
        count = group.producer.count
        least = torch.full((count,), torch.inf, dtype=torch.float64)
        for member in group.members:
            if asks(member.site):
                found = member.gathered(room[member.site.node], count, "amin", torch.inf)
                least = torch.minimum(least, found)
        return torch.where(group.free & torch.isfinite(least), least, 1.0).clamp(1.0, self.limit)

    def column_scales(self, blocks: Tensor) -> Tensor:
        """How much each column of a weight `[groups, in, out, kernel]` can grow, float64 `[groups * in]`;
        infinite for a column of zeros."""
        halves = (blocks.abs(),) if self.symmetric else (blocks, -blocks)
        used = torch.stack([_used(half) for half in halves]).amax(0)
        return used.double().reciprocal().cpu()


def _used(blocks: Tensor) -> Tensor:
    """How far the columns reach towards the rows' maxima, at most 1 each; 0 for columns without a positive
    entry, and towards the maximum of a row without one."""
    ends = blocks.amax((1, 3), keepdim=True)
    ends = torch.where(ends > 0, ends, torch.inf)
    return (blocks / ends).amax((2, 3)).clamp_min(0).flatten()


def _saturated(room: Tensor) -> str:
    """|A| over the number of channels of one weight."""
    held = int((room <= _FULL).sum())
    return f"{held} of {len(room)} channels hold an end of a row (|A|/in {held / max(len(room), 1):.2f})"


def _text(group: Group, scales: Tensor, room: Tensor) -> str:
    grown = int((scales > _FULL).sum())
    if not grown:
        return f"no channel can grow: {_saturated(room)}"
    largest = float(scales.max())
    by = f"{grown} channels dilated by up to {largest:.3g}, taken by {group.producer.path}"
    return f"{by}; {_saturated(room)}"
