"""Scalar quantisation: a grid, a scale, and what shares it. Field names are those of compressed-tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Source, grid_error, optimal_scale
from .base import CARRY, Cell, Fields, Sized, Stage
from .grids import INTEGER_GRIDS, Grid, parse_grid

Strategy = Literal["tensor", "channel", "group", "token"]
Observer = Literal["absmax", "mse", "rms"]
ScaleDtype = Literal["float32", "float16", "bfloat16"]

_SEARCH = torch.linspace(1.0, 0.2, 65).tolist()  # shrink factors of the absmax scale that `mse` tries


@dataclass(frozen=True)
class Quantize(Stage):
    """Round every number to the nearest level of a grid times a scale.

    Shapes: the tensor is `[..., n]`. `strategy` says what shares a scale: `tensor` all numbers; `channel` and
    `token` one vector along the last dimension (a weight's row, an activation's token); `group` each
    `group_size` neighbours along the last dimension. `observer` says how the scale follows from the numbers:
    `absmax` (largest magnitude to the grid's end), `mse` (search, least squared error), `rms` (root mean
    square times the factor that is optimal for Gaussian data as the chain hands it on; QuEST 2502.05003
    section 3.1). `grid` is `midrise` (default of 1 bit), `midtread`, `twos` (default of ints) or a float such
    as `e2m1` (default of floats: e2m1 for 4 bits, e4m3 for 8). `scale_dtype` is how scales are stored; unset
    means the tensor's own dtype. The scale is rounded to it before anything is quantised with it.
    """

    num_bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: Literal[True] = True
    strategy: Strategy = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    observer: Observer = "absmax"
    scale_dtype: ScaleDtype | None = None
    grid: str | None = None
    clip: float | None = None
    kind: Literal["quantize"] = "quantize"

    def __post_init__(self) -> None:
        if not 1 <= self.num_bits <= 8:
            raise ValueError(f"num_bits must be between 1 and 8, got {self.num_bits}")
        if (self.strategy == "group") != (self.group_size is not None):
            raise ValueError("strategy 'group' and group_size go together: give both or neither")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be positive, got {self.group_size}")
        if self.clip is not None and (self.observer != "rms" or self.clip <= 0):
            raise ValueError("clip is a positive factor of the rms and needs observer: rms")
        self._check_grid()

    def _check_grid(self) -> None:
        name = self._grid_name
        if (name in INTEGER_GRIDS) != (self.type == "int"):
            raise ValueError(f"grid {name!r} is not a grid of type {self.type!r}")
        if parse_grid(name, self.num_bits).levels[-1] <= 0:
            raise ValueError(f"{name} with {self.num_bits} bit has no level above zero; use grid: midrise")

    @property
    def _grid_name(self) -> str:
        if self.grid is not None:
            return self.grid
        if self.type == "int":
            return "midrise" if self.num_bits == 1 else "twos"
        named = {4: "e2m1", 8: "e4m3"}
        if self.num_bits not in named:
            raise ValueError(f"a {self.num_bits}-bit float needs a grid, for example grid: e3m2")
        return named[self.num_bits]

    @cached_property
    def levels(self) -> Grid:
        """The grid, in units of the scale."""
        return parse_grid(self._grid_name, self.num_bits)

    def check(self, shape: tuple[int, ...]) -> None:
        if self.group_size is not None and (not shape or shape[-1] % self.group_size):
            last = shape[-1] if shape else 0
            raise RequestError(
                f"group_size {self.group_size} does not divide the last dimension of {last}",
                advice=f"choose a divisor of {last}, or strategy: channel",
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        scaled, scale = self._scaled(x)
        return self.levels.encode(scaled).reshape(x.shape), {"scale": scale.squeeze(-1)}

    def project(self, x: Tensor) -> tuple[Tensor, Fields]:
        scaled, scale = self._scaled(x)
        wide = scale.to(torch.promote_types(scale.dtype, torch.float32))
        projected = self.levels.project(scaled).to(wide.dtype).mul_(wide)
        return projected.reshape(x.shape), {"scale": scale.squeeze(-1)}

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A new tensor of the numbers over their scale, in blocks, and the scales `[..., 1]` as stored."""
        self.check(tuple(x.shape))
        blocks = self._blocks(x.to(torch.promote_types(x.dtype, torch.float32)))
        stored = self._stored(x.dtype)
        scale = self._scale(blocks).clamp_min(_least_scale(stored)).to(stored)
        return blocks / scale.to(blocks.dtype), scale

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        scale = fields["scale"].unsqueeze(-1)
        scale = scale.to(torch.promote_types(scale.dtype, torch.float32))
        blocks = self._blocks(carry)
        values = self.levels.decode(blocks, scale.dtype)
        return (values.mul_(scale) if values.ndim else values * scale).reshape(carry.shape)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        shared: tuple[int, ...] = (1,) if self.strategy == "tensor" else x.shape[:-1]
        if self.group_size is not None:
            shared = (*x.shape[:-1], x.shape[-1] // self.group_size)
        return Sized(x.shape, torch.uint8), {"scale": Sized(shared, self._stored(x.dtype))}

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that scales of a tensor of this dtype are stored in."""
        return getattr(torch, self.scale_dtype) if self.scale_dtype else dtype

    def widths(self) -> dict[str, int]:
        return {CARRY: self.num_bits}

    def cell(self, fields: Fields) -> Cell:
        scale = fields["scale"].to(torch.promote_types(fields["scale"].dtype, torch.float32))
        scale = scale.reshape(()) if self.strategy == "tensor" else scale.unsqueeze(-1)
        if self.strategy == "group" and self.group_size is not None:
            scale = scale.expand(*scale.shape[:-1], self.group_size).flatten(-2)
        levels = self.levels.levels
        return Cell(scale * self.levels.half_width, scale * levels[-1], len(levels))

    def bound(self, source: Source) -> Quantize:
        """With the Gaussian-optimal clip filled in when the observer is `rms` and none is given."""
        if self.observer != "rms" or self.clip is not None:
            return self
        return replace(
            self, clip=optimal_scale(self.levels.levels, source) * self.levels.levels[-1] / source.rms
        )

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Integral over the cells, in the limit of many numbers per scale; None for groups and absmax."""
        if self.strategy == "group" or self.observer == "absmax":
            return None
        levels = self.levels.levels
        if self.observer == "rms" and self.clip is not None:
            scale = self.clip * source.rms / levels[-1]
        else:
            scale = optimal_scale(levels, source)
        return source, grid_error(np.array(levels), scale, source)

    def _blocks(self, x: Tensor) -> Tensor:
        """View with the numbers that share a scale along the last dimension."""
        if self.strategy == "tensor":
            return x.reshape(1, -1)
        if self.group_size is not None:
            return torch.unflatten(x, -1, (-1, self.group_size))
        return x

    def _scale(self, blocks: Tensor) -> Tensor:
        """Scale of each block, `[..., 1]`, in the precision of the computation."""
        if 0 in blocks.shape[-1:]:
            return blocks.new_zeros(*blocks.shape[:-1], 1)
        if self.observer == "rms":
            if self.clip is None:
                raise RequestError(
                    "an rms scale needs its clip", advice="call encode through a Representation"
                )
            factor = self.clip / self.levels.levels[-1]
            return blocks.square().mean(-1, keepdim=True).sqrt() * factor
        scale = blocks.abs().amax(-1, keepdim=True) / self.levels.absmax_level
        if self.observer == "absmax" or blocks.is_meta:  # a layout needs no search
            return scale
        return self._searched(blocks, scale)

    def _searched(self, blocks: Tensor, absmax_scale: Tensor) -> Tensor:
        """The shrunken absmax scale with the least squared error, then least squares for its codes."""
        tiny = torch.finfo(blocks.dtype).tiny
        best, least = absmax_scale.clamp_min(tiny), torch.full_like(absmax_scale, torch.inf)
        for shrink in _SEARCH:
            scale = (absmax_scale * shrink).clamp_min(tiny)
            error = (self._rounded(blocks, scale) * scale - blocks).square().sum(-1, keepdim=True)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        rounded = self._rounded(blocks, best)
        return (rounded * blocks).sum(-1, keepdim=True) / rounded.square().sum(-1, keepdim=True).clamp_min(
            tiny
        )

    def _rounded(self, blocks: Tensor, scale: Tensor) -> Tensor:
        """The nearest level of each number, in units of its scale."""
        return self.levels.project(blocks / scale)

    def __str__(self) -> str:
        shared = f"group={self.group_size}" if self.group_size is not None else self.strategy
        grid = f"int{self.num_bits}" if self.type == "int" else self._grid_name
        parts = [grid, *([self._grid_name] if self.type == "int" else []), shared, self.observer]
        parts += [f"scale={self.scale_dtype}"] if self.scale_dtype else []
        parts += [f"clip={self.clip:.6g}"] if self.clip is not None else []
        return f"quantize({', '.join(parts)})"


def _least_scale(dtype: torch.dtype) -> float:
    """The smallest scale worth storing, so that a block of zeros has one to divide by.

    float16 is too narrow to do without its subnormal numbers; in the others they may be flushed to zero.
    """
    info = torch.finfo(dtype)
    return float(info.tiny * info.eps if dtype == torch.float16 else info.tiny)
