"""Places as positions: of the numbers that stay, where in their group or pool they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..packing import pack, packed_length, unpack
from ..stage import Fields, Sized
from .pattern import Pools
from .storage import Storage, check_below, flat_places, position_bits


@dataclass(frozen=True)
class GroupIndex(Storage):
    """`index` of n:m: the position in its group of every unit that stays, ceil(log2 units) bits each.

    For 2:4 these are the 2-bit metadata of sparse tensor cores (mma.sp), in the order of the numbers.
    """

    kept: int
    units: int

    def encode(self, mask: Tensor, places: Tensor, pools: Pools) -> Fields:
        inside = places & (self.units - 1) if _is_power(self.units) else places % self.units
        return {"index": inside.to(torch.uint8).reshape(self._shape(pools))}

    def decode(self, fields: Fields, pools: Pools) -> Tensor:
        inside = fields["index"].reshape(-1, self.kept).long()
        if not _is_power(self.units):
            check_below(inside, self.units, "index")
        return flat_places(inside, self.units)

    def layout(self, pools: Pools) -> dict[str, Sized]:
        return {"index": Sized(self._shape(pools), torch.uint8)}

    def widths(self) -> Mapping[str, int]:
        return {"index": max(1, (self.units - 1).bit_length())}

    def mask_shape(self, fields: Fields) -> tuple[int, ...] | None:
        *rows, stored = fields["index"].shape
        return (*rows, stored // self.kept * self.units)

    def _shape(self, pools: Pools) -> tuple[int, ...]:
        return (*pools.shape[:-2], pools.shape[-2] * self.kept)


@dataclass(frozen=True)
class PackedIndex(Storage):
    """`index`: the position in its pool of every unit that stays, ceil(log2 units) bits each, packed by pool.

    The width follows from the shape, so the bits are packed here rather than by the representation.
    """

    def encode(self, mask: Tensor, places: Tensor, pools: Pools) -> Fields:
        inside = (places % max(pools.units, 1)).to(torch.int32).reshape(pools.index)
        return {"index": pack(inside, position_bits(pools.units))}

    def decode(self, fields: Fields, pools: Pools) -> Tensor:
        inside = unpack(fields["index"], position_bits(pools.units), pools.kept).long()
        check_below(inside, pools.units, "index")
        inside = inside.reshape(prod(pools.shape[:-1]), pools.kept)
        return flat_places(inside, pools.units)

    def layout(self, pools: Pools) -> dict[str, Sized]:
        stored = packed_length(pools.kept, position_bits(pools.units))
        return {"index": Sized((*pools.shape[:-1], stored), torch.uint8)}


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0
