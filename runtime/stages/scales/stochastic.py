"""Stochastic rounding: to one of the two levels around a number, so that it is right on average."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..grids import Grid, IntegerGrid


def between(grid: Grid, x: Tensor, generator: torch.Generator) -> Tensor:
    """A level of the grid for every number: with l <= x <= u around it, u with probability (x - l) / (u - l).

    The mean is x and the variance (x - l) (u - x). Beyond the ends of the grid there is one level to choose,
    and the mean is off by what is clipped. NaN stays NaN. `x` may be overwritten.
    """
    draws = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if isinstance(grid, IntegerGrid):
        return _between_integers(grid, x, draws)
    levels = _levels(grid, x.dtype, x.device)
    rank = torch.bucketize(x, levels, out_int32=True, right=True).sub_(1).clamp_(0, len(levels) - 2)
    low = levels.index_select(0, rank.view(-1)).view(x.shape)
    high = levels.index_select(0, rank.add_(1).view(-1)).view(x.shape)
    up = draws.mul_(high - low) < x - low
    return torch.where(x.isnan(), x, torch.where(up, high, low))


def _between_integers(grid: IntegerGrid, x: Tensor, draws: Tensor) -> Tensor:
    first, last = grid.levels[0], grid.levels[-1]
    whole = x.sub_(first).floor()
    return whole.add_(draws < x.sub_(whole)).clamp_(0, last - first).add_(first)


@lru_cache(maxsize=64)
def _levels(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(grid.levels, dtype=torch.float64).to(dtype=dtype, device=device)
