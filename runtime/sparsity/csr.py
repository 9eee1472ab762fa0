"""Places as compressed sparse rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import WorkError
from ..packing import pack, packed_length, unpack
from ..stage import Fields, Sized
from .pattern import Pools
from .storage import Storage, check_below, position_bits


@dataclass(frozen=True)
class Csr(Storage):
    """Compressed sparse rows of the mask as a matrix: `row_offsets` int32, and `columns`, packed.

    `row_offsets` `[rows + 1]` counts the units that stay before every row; `columns` has ceil(log2 columns)
    bits per unit that stays.
    """

    def encode(self, mask: Tensor, places: Tensor, pools: Pools) -> Fields:
        rows, columns = self._matrix(pools)
        starts = torch.arange(rows + 1, device=places.device) * columns
        offsets = torch.searchsorted(places, starts).to(torch.int32)
        inside = (places % max(columns, 1)).to(torch.int32)
        return {"row_offsets": offsets, "columns": pack(inside, position_bits(columns))}

    def decode(self, fields: Fields, pools: Pools) -> Tensor:
        rows, columns = self._matrix(pools)
        offsets = fields["row_offsets"].long()
        counts = offsets.diff()
        if int(offsets[0]) or int(offsets[-1]) != pools.total or bool((counts < 0).any()):
            raise WorkError("row offsets of a sparse tensor are damaged", advice="load it from another copy")
        inside = unpack(fields["columns"], position_bits(columns), pools.total).long()
        check_below(inside, columns, "columns")
        starts = torch.arange(rows, device=offsets.device) * columns
        return inside + starts.repeat_interleave(counts, output_size=pools.total)

    def layout(self, pools: Pools) -> dict[str, Sized]:
        rows, columns = self._matrix(pools)
        stored = packed_length(pools.total, position_bits(columns))
        return {
            "row_offsets": Sized((rows + 1,), torch.int32),
            "columns": Sized((stored,), torch.uint8),
        }

    def _matrix(self, pools: Pools) -> tuple[int, int]:
        return prod(pools.mask[:-1]), pools.mask[-1] if pools.mask else 1
