"""The contract of a storage: how the places of survivors become fields; and the plainest of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WorkError
from ..stage import Fields, Sized
from .pattern import Pools
from .select import positions

_FEW = 8


class Storage(ABC):
    """Places `[k]` (ascending positions of units in the flattened mask) as fields, and back."""

    @abstractmethod
    def encode(self, mask: Tensor, places: Tensor, pools: Pools) -> Fields:
        """The fields of a mask whose true positions are `places`."""

    @abstractmethod
    def decode(self, fields: Fields, pools: Pools) -> Tensor:
        """Places, int64."""

    @abstractmethod
    def layout(self, pools: Pools) -> dict[str, Sized]:
        """Shapes and dtypes of the fields."""

    def widths(self) -> Mapping[str, int]:
        """Stored bits of fields that are narrower than their dtype."""
        return {}

    def mask_shape(self, fields: Fields) -> tuple[int, ...] | None:
        """The mask's shape from the fields; None where they do not tell."""
        return None


@dataclass(frozen=True)
class Bitmask(Storage):
    """`mask`: one bit per unit."""

    def encode(self, mask: Tensor, places: Tensor, pools: Pools) -> Fields:
        return {"mask": mask}

    def decode(self, fields: Fields, pools: Pools) -> Tensor:
        return positions(fields["mask"])

    def layout(self, pools: Pools) -> dict[str, Sized]:
        return {"mask": Sized(pools.mask, torch.bool)}

    def widths(self) -> Mapping[str, int]:
        return {"mask": 1}

    def mask_shape(self, fields: Fields) -> tuple[int, ...] | None:
        return tuple(fields["mask"].shape)


def position_bits(count: int) -> int:
    """Bits of a position below `count`."""
    return max(1, (count - 1).bit_length())


def flat_places(inside: Tensor, units: int) -> Tensor:
    """Places from positions inside pools, int64 `[pools, kept]`, which are overwritten."""
    if not inside.numel():
        return inside.reshape(-1)
    starts = torch.arange(0, len(inside) * units, units, device=inside.device)
    if inside.shape[1] > _FEW:
        return inside.add_(starts.unsqueeze(-1)).reshape(-1)
    for column in inside.unbind(-1):  # a broadcast over a short dimension is slow
        column.add_(starts)
    return inside.reshape(-1)


def check_below(values: Tensor, limit: int, field: str) -> None:
    """Positions outside the tensor would be an error that names nothing."""
    if values.numel() and int(values.amax()) >= limit:
        raise WorkError(f"{field} of a sparse tensor is damaged", advice="load it from another copy")
