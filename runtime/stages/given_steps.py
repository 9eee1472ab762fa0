"""`quantize` under steps that are given, where nothing is measured: what a learned step size stands on.

A step is the distance of two levels that are one unit apart. What is done with it is what `quantize` does
with a scale that it has measured, so that codes made here decode like all others, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..stage import Fields
from .precision import cast, wide
from .quantize import Quantize
from .scales import rounding


@dataclass(frozen=True)
class GivenSteps:
    """A symmetric `quantize` on tensors of one shape and dtype, under steps `[count]` in the order of scales.

    Magnitudes of steps count. They are rounded as scales are stored, and kept above zero. With an `offset`
    (a tensor of one number, or of one for each row of a matrix) the grid is moved by it:
    R(x) = s Q((x - b) / s) + b.
    """

    stage: Quantize
    shape: tuple[int, ...]
    dtype: torch.dtype
    steps: Tensor
    offset: Tensor | None = None

    @property
    def fields(self) -> Fields:
        """The steps as `quantize` stores its scales."""
        tiling, own = self.stage._tiling, wide(self.dtype)
        steps = cast(self.steps.detach(), own).abs().reshape(tiling.scale_shape(self.shape))
        return self.stage.storage.store(steps.clamp_min(torch.finfo(own).tiny), self.dtype)

    def project(self, x: Tensor) -> Tensor:
        """The numbers that codes of `x` stand for, in the precision of the computation."""
        grid = self.stage.levels
        parts = [rounding.project(grid, block, scale, None) for block, scale in self._parts(self._moved(x))]
        return self._back(self._joined(parts))

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        """Codes of `x`, and the fields that they decode with (without the offset)."""
        grid = self.stage.levels
        parts = [rounding.encode(grid, block, scale, None) for block, scale in self._parts(self._moved(x))]
        return self.stage._tiling.join(parts, self.shape, torch.uint8, x.device), self.fields

    def parts(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each size of tile numbers `[steps, numbers]`, less the offset, and steps `[steps, 1]`."""
        for block, scale in self._parts(self._moved(x)):
            yield block, cast(scale, block.dtype)

    def split(self, x: Tensor) -> list[Tensor]:
        """Any tensor of the shape cut alike, in the precision of the computation."""
        return self.stage._tiling.split(cast(x, wide(self.dtype)))

    def joined(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return self._joined(parts)

    def joined_steps(self, columns: list[Tensor]) -> Tensor:
        """Columns `[steps, 1]`, one for each size of tile, in the order of the steps: `[count]`."""
        joined = self.stage._tiling.join_scale(columns, self.shape, wide(self.dtype), columns[0].device)
        return joined.reshape(-1)

    def _parts(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        scale = self.stage._restored(self.fields, self.shape)
        yield from zip(self.split(x), self.stage._tiling.split_scale(scale, self.shape), strict=True)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return self.stage._tiling.join(parts, self.shape, parts[0].dtype, parts[0].device)

    def _moved(self, x: Tensor) -> Tensor:
        x = cast(x, wide(self.dtype))
        return x if self.offset is None else x - self._shift(x)

    def _back(self, x: Tensor) -> Tensor:
        return x if self.offset is None else x + self._shift(x)

    def _shift(self, x: Tensor) -> Tensor:
        assert self.offset is not None
        offset = self.offset.detach().to(x.dtype)
        return offset if offset.numel() == 1 else offset.unsqueeze(-1)


def measured_steps(stage: Quantize, x: Tensor) -> Tensor:
    """The steps `[count]` that the observer finds, as they are stored: where learning starts."""
    _, fields = stage._measured(x, None)
    return stage._restored(fields, tuple(x.shape)).reshape(-1).abs()


def count_of(stage: Quantize, shape: tuple[int, ...]) -> int:
    """How many steps a tensor of this shape has."""
    return prod(stage._tiling.scale_shape(shape))
