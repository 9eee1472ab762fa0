"""Grids whose levels stand in a table."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .base import Grid
from .nearest import Intervals, Search, nearest
from .pieces import mapped, pieces


class TableGrid(Grid):
    """A grid that finds codes and values by looking them up. Instances are hashable.

    Numbers halfway between two levels go to the even code.
    """

    @property
    @abstractmethod
    def level_codes(self) -> Sequence[int]:
        """The code of each of `levels`."""

    @property
    @abstractmethod
    def code_values(self) -> Sequence[float]:
        """The value of each code from zero up, also of those that `encode` never gives."""

    def encode(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return _nearest(self, x.dtype, x.device).encode(x)

    def decode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        values = _values(self, dtype, codes.device)

        def look_up(part: Tensor, out: Tensor) -> None:
            torch.index_select(values, 0, part.to(torch.int32), out=out)

        return mapped(codes, dtype, look_up)

    def project(self, x: Tensor) -> Tensor:
        for part in pieces(x):
            unknown = part.isnan()
            part.copy_(self.decode(self.encode(part), x.dtype)).masked_fill_(unknown, torch.nan)
        return x


@lru_cache(maxsize=32)
def _nearest(grid: TableGrid, dtype: torch.dtype, device: torch.device) -> Intervals | Search:
    return nearest(grid.levels, grid.level_codes, dtype, device)


@lru_cache(maxsize=64)
def _values(grid: TableGrid, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(grid.code_values, dtype=torch.float64).to(dtype=dtype, device=device)
