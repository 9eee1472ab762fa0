"""What shares a scale: a tensor cut into tiles, the last ones of a row or column simply smaller."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """`tiles` neighbouring tiles of one size along a dimension, and where they start."""

    start: int
    size: int
    tiles: int
    first: int  # the number of the first tile

    @property
    def part(self) -> slice:
        """Where they lie among numbers."""
        return slice(self.start, self.start + self.size * self.tiles)

    @property
    def of_tiles(self) -> slice:
        """Where they lie among tiles."""
        return slice(self.first, self.first + self.tiles)


@dataclass(frozen=True, eq=False)  # a stage has one, and it is looked up by identity at every step
class Tiling:
    """Tiles of `rows` x `columns` numbers over the last two dimensions; None is all of a dimension.

    `whole`: one tile, the tensor. What a tensor `[..., R, C]` gives is a list of matrices `[tiles, numbers]`,
    one for each size of tile: nothing is padded, so that no rule has to know of padding. Scales are
    `[..., ceil(R / rows), ceil(C / columns)]`; along whole dimensions, and for single rows, as documented in
    `scale_shape`.
    """

    rows: int = 1
    columns: int | None = None
    whole: bool = False

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales: `[1]` for the whole tensor, `[...]` for rows, else a scale for each tile."""
        if self.whole:
            return (1,)
        if self.columns is None:
            return shape[:-1]
        *leading, columns = shape or (1,)
        if self.rows > 1:
            leading[-1] = -(-leading[-1] // self.rows)
        return (*leading, -(-columns // self.columns))

    def split(self, x: Tensor) -> list[Tensor]:
        """The numbers of each tile in a row: matrices `[tiles, numbers]`, views where that is possible."""
        shape = tuple(x.shape)
        if (matrix := _matrix(self, shape)) is not None:
            return [x if shape == matrix else x.reshape(matrix)]
        view = x.reshape(self._cube(shape))
        return [self._tiles(view, rows, columns) for rows, columns in self._regions(shape)]

    def join(
        self, blocks: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """The inverse of `split` for a tensor of this shape; the dtype and device are that of the blocks."""
        if _matrix(self, shape) is not None:
            (block,) = blocks
            return block if block.shape == shape else block.reshape(shape)
        regions = self._regions(shape)
        joined = torch.empty(self._cube(shape), dtype=dtype, device=device)
        for (rows, columns), block in zip(regions, blocks, strict=True):
            tiles = block.reshape(-1, rows.tiles, columns.tiles, rows.size, columns.size).transpose(2, 3)
            part = joined[:, rows.part, columns.part]
            part.copy_(tiles.reshape(part.shape))
        return joined.reshape(shape)

    def split_scale(self, scale: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        """Scales of each matrix of `split`, as columns `[tiles, 1]`."""
        if (matrix := _matrix(self, shape)) is not None:
            return [scale.reshape(matrix[0], 1)]
        view = scale.reshape(self._scale_cube(shape))
        regions = self._regions(shape)
        return [view[:, rows.of_tiles, columns.of_tiles].reshape(-1, 1) for rows, columns in regions]

    def join_scale(
        self, columns: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """The inverse of `split_scale`; the dtype and device are that of the columns."""
        regions = self._regions(shape)
        if len(regions) == 1:
            return columns[0].reshape(self.scale_shape(shape))
        joined = torch.empty(self._scale_cube(shape), dtype=dtype, device=device)
        for (rows, cols), column in zip(regions, columns, strict=True):
            part = joined[:, rows.of_tiles, cols.of_tiles]
            part.copy_(column.reshape(part.shape))
        return joined.reshape(self.scale_shape(shape))

    def spread(self, scale: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """Scales at every number, or broadcast to it. Without a shape, all tiles count as full ones."""
        if self.whole:
            return scale.reshape(())
        if self.columns is None:
            return scale.unsqueeze(-1)
        spread = scale.repeat_interleave(self.columns, dim=-1)
        if self.rows > 1:
            spread = spread.repeat_interleave(self.rows, dim=-2)
        if shape is None:
            return spread
        if not shape:
            return spread.reshape(-1)[0]
        return spread[..., : shape[-2], : shape[-1]] if self.rows > 1 else spread[..., : shape[-1]]

    def uneven(self, shape: tuple[int, ...]) -> bool:
        """Whether some tile of a tensor of this shape is smaller than the others."""
        if self.columns is None:
            return False
        _, rows, columns = self._cube(shape)
        return rows % self.rows > 0 or columns % self.columns > 0

    def _cube(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape as layers, rows and columns."""
        if self.whole:
            return 1, 1, prod(shape)
        *leading, columns = shape or (1,)
        if self.rows == 1:
            return prod(leading), 1, columns
        return prod(leading[:-1]), leading[-1], columns

    def _scale_cube(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        layers, rows, columns = self._cube(shape)
        return layers, _tiles_in(_spans(rows, self.rows)), _tiles_in(_spans(columns, self.columns))

    def _regions(self, shape: tuple[int, ...]) -> tuple[tuple[Span, Span], ...]:
        """Parts of the tensor with tiles of one size."""
        return _pairs(self, shape)

    @staticmethod
    def _tiles(view: Tensor, rows: Span, columns: Span) -> Tensor:
        part = view[:, rows.part, columns.part]
        count = view.shape[0] * rows.tiles * columns.tiles
        if rows.size > 1:
            part = part.reshape(view.shape[0], rows.tiles, rows.size, columns.tiles, columns.size)
            part = part.transpose(2, 3)
        return part.reshape(count, rows.size * columns.size)


@lru_cache(maxsize=1024)
def _pairs(tiling: Tiling, shape: tuple[int, ...]) -> tuple[tuple[Span, Span], ...]:
    """Every span of rows with every span of columns; remembered, since training asks at every step."""
    _, rows, columns = tiling._cube(shape)
    return tuple(product(_spans(rows, tiling.rows), _spans(columns, tiling.columns)))


@lru_cache(maxsize=1024)
def _matrix(tiling: Tiling, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(tiles, numbers of each) where the tensor is that matrix as it lies in memory; None where it is not."""
    regions = _pairs(tiling, shape)
    if len(regions) != 1 or tiling.rows != 1:
        return None
    ((_, columns),) = regions
    return tiling._cube(shape)[0] * columns.tiles, columns.size


def _tiles_in(spans: list[Span]) -> int:
    return sum(span.tiles for span in spans)


def _spans(length: int, size: int | None) -> list[Span]:
    """A dimension cut into tiles: the full ones, then the one that is left."""
    if size is None or 0 < length <= size:
        return [Span(0, length, 1, 0)]
    full, rest = divmod(length, size)
    spans = [Span(0, size, full, 0)] if full else []
    return [*spans, Span(full * size, rest, 1, full)] if rest else spans
