"""Block sparsity: whole blocks of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Keep, Source
from .pattern import Fraction, Pools
from .survival import KeepBlocks, untouched


@dataclass(frozen=True)
class Blocks(Fraction):
    """Blocks of the last two dimensions, those of largest L2 norm; handed on one after the other as `[k]`.

    Where blocks do not divide the matrix, the last are smaller and are filled up with zeros.
    """

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Numbers of a whole block."""
        return self.rows * self.columns

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise RequestError(
                f"block sparsity needs a matrix, and this tensor has {len(shape)} dimensions",
                advice="use sparsity_structure: unstructured, or leave this tensor out with `ignore`",
            )

    def pools(self, shape: tuple[int, ...]) -> Pools:
        mask = (*shape[:-2], -(-shape[-2] // self.rows), -(-shape[-1] // self.columns))
        blocks = prod(mask)
        return Pools(mask, (blocks,), self.kept(blocks))

    def scores(self, magnitude: Tensor) -> Tensor:
        tiles = self._tiles(magnitude, 0.0)
        norms: Tensor = torch.linalg.vector_norm(tiles, dim=(-3, -1), dtype=torch.float64)
        return norms

    def carry_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.pools(shape).kept * self.size,)

    def spread(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        tall = mask.repeat_interleave(self.rows, -2)[..., : shape[-2], :]
        return tall.repeat_interleave(self.columns, -1)[..., : shape[-1]]

    def take(self, x: Tensor, places: Tensor) -> Tensor:
        return self._take(x, places, 0.0)

    def take_importance(self, importance: Tensor, places: Tensor) -> Tensor:
        """What a tail block is filled up with counts as little as the least important number."""
        return self._take(importance, places, float(importance.amin()) if importance.numel() else 0.0)

    def put(self, carry: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        grid = self.pools(shape).mask
        blocks = torch.zeros(prod(grid), self.size, dtype=carry.dtype, device=carry.device)
        blocks.index_copy_(0, places, carry.reshape(-1, self.size))
        tiles = blocks.reshape(*grid, self.rows, self.columns).transpose(-3, -2)
        whole = tiles.reshape(*grid[:-2], grid[-2] * self.rows, grid[-1] * self.columns)
        return whole[..., : shape[-2], : shape[-1]].contiguous()

    def survival(self, source: Source) -> Keep | None:
        """A threshold of the energy, chi-squared, in the limit of many blocks."""
        from scipy.special import chdtri

        return (
            KeepBlocks(float(chdtri(self.size, 1 - self.sparsity)), self.size) if untouched(source) else None
        )

    def _take(self, x: Tensor, places: Tensor, fill: float) -> Tensor:
        blocks = self._tiles(x, fill).transpose(-3, -2).reshape(-1, self.size)
        return blocks.index_select(0, places).reshape(-1)

    def _tiles(self, x: Tensor, fill: float) -> Tensor:
        """A matrix `[..., r, c]`, filled up, as `[..., grid rows, rows, grid columns, columns]`."""
        below, beside = -x.shape[-2] % self.rows, -x.shape[-1] % self.columns
        if below or beside:
            x = torch.nn.functional.pad(x, (0, beside, 0, below), value=fill)
        high, wide = x.shape[-2] // self.rows, x.shape[-1] // self.columns
        return x.reshape(*x.shape[:-2], high, self.rows, wide, self.columns)
