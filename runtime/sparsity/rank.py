"""Places as ranks: of the choices that n:m allows, which one a group is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..stage import Fields, Sized
from .pattern import Pools
from .storage import Storage, check_below, flat_places


@dataclass(frozen=True)
class Rank(Storage):
    """`rank` of n:m: which of the C(units, kept) choices a group is, in ceil(log2 C) bits.

    Choices are numbered by the combinatorial number system (Knuth 4A, 7.2.1.3): positions
    c1 < c2 < ... are number C(c1, 1) + C(c2, 2) + ...; 2:4 takes 3 bits where its index takes 4.
    """

    kept: int
    units: int

    def encode(self, mask: Tensor, places: Tensor, pools: Pools) -> Fields:
        chosen = (places % self.units).reshape(-1, self.kept)
        table = _binomials(self.units, self.kept).to(places.device)
        rank = torch.zeros(len(chosen), dtype=torch.int64, device=places.device)
        for order in range(self.kept):
            rank += table[order][chosen[:, order]]
        return {"rank": rank.to(self._dtype).reshape(pools.shape[:-1])}

    def decode(self, fields: Fields, pools: Pools) -> Tensor:
        rank = fields["rank"].reshape(-1).long()
        check_below(rank, math.comb(self.units, self.kept), "rank")
        table = _binomials(self.units, self.kept).to(rank.device)
        chosen = torch.empty(len(rank), self.kept, dtype=torch.int64, device=rank.device)
        for order in reversed(range(self.kept)):
            chosen[:, order] = torch.searchsorted(table[order], rank, right=True) - 1
            rank = rank - table[order][chosen[:, order]]
        return flat_places(chosen, self.units)

    def layout(self, pools: Pools) -> dict[str, Sized]:
        return {"rank": Sized(pools.shape[:-1], self._dtype)}

    def widths(self) -> Mapping[str, int]:
        return {"rank": self.bits}

    def mask_shape(self, fields: Fields) -> tuple[int, ...] | None:
        *rows, groups = fields["rank"].shape
        return (*rows, groups * self.units)

    @property
    def bits(self) -> int:
        """Bits of one group."""
        return max(1, (math.comb(self.units, self.kept) - 1).bit_length())

    @property
    def _dtype(self) -> torch.dtype:
        return torch.uint8 if self.bits <= 8 else torch.int32


@lru_cache(maxsize=64)
def _binomials(units: int, kept: int) -> Tensor:
    """C(position, order + 1) as `[order, position]`, ascending along positions.

    Entries above the largest rank are cut off there, so that they fit and a search never finds them.
    """
    most = math.comb(units, kept)
    rows = [[min(math.comb(c, order + 1), most) for c in range(units)] for order in range(kept)]
    return torch.tensor(rows, dtype=torch.int64)
