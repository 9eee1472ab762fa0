"""Numbers to codes and back under given scales, some at a time: what is made on the way stays in cache."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from ...determinism import one_thread
from ..grids import Grid
from ..precision import cast
from .base import CHUNK, by_rows
from .stochastic import between

_Zero = Tensor | None
_Random = torch.Generator | None


def encode(
    grid: Grid, blocks: Tensor, scale: Tensor, zero: _Zero, *, positive: bool = False, random: _Random = None
) -> Tensor:
    """Codes of blocks `[m, k]` for scales and zero points `[m, 1]`. Without a scale (0) all are zeros.

    `positive`: there is no such scale. `random`: rounding is stochastic, with numbers from there.
    """

    def codes(part: Tensor, scale: Tensor, zero: _Zero) -> Tensor:
        scaled = _scaled(part, scale, zero, positive)
        return grid.encode(scaled if random is None else between(grid, scaled, random))

    return _by_parts(codes, torch.uint8, blocks, scale, zero)


def decode(grid: Grid, codes: Tensor, scale: Tensor, zero: _Zero) -> Tensor:
    """The inverse of `encode`, in the dtype of the scales."""

    def values(part: Tensor, scale: Tensor, zero: _Zero) -> Tensor:
        return _unscaled(grid.decode(part, scale.dtype), scale, zero)

    return _by_parts(values, scale.dtype, codes, scale, zero)


def project(
    grid: Grid, blocks: Tensor, scale: Tensor, zero: _Zero, *, positive: bool = False, random: _Random = None
) -> Tensor:
    """`decode(encode(blocks))` without codes."""

    def values(part: Tensor, scale: Tensor, zero: _Zero) -> Tensor:
        scaled = _scaled(part, scale, zero, positive)
        levels = grid.project(scaled) if random is None else between(grid, scaled, random)
        return _unscaled(cast(levels, scale.dtype), scale, zero)

    return _by_parts(values, scale.dtype, blocks, scale, zero)


def error(grid: Grid, blocks: Tensor, scale: Tensor, importance: Tensor | None) -> Tensor:
    """Squared error `[m, 1]` of each row, weighted by `importance` `[m, k]`."""

    def errors(blocks: Tensor, scale: Tensor, importance: Tensor | None) -> Tensor:
        levels = grid.project(_scaled(blocks, scale, None, False))
        squares = _unscaled(levels, scale, None).sub_(blocks).square_()
        if importance is not None:
            squares.mul_(importance)
        return squares.sum(-1, keepdim=True)

    return by_rows(errors, blocks, scale, importance)


def _scaled(blocks: Tensor, scale: Tensor, zero: _Zero, positive: bool) -> Tensor:
    if not positive:
        scale = torch.where(scale == 0, torch.inf, scale)
    scaled = blocks / cast(scale, blocks.dtype)
    return scaled if zero is None else scaled.add_(zero.to(blocks.dtype))


def _unscaled(levels: Tensor, scale: Tensor, zero: _Zero) -> Tensor:
    return (levels if zero is None else levels.sub_(zero.to(levels.dtype))).mul_(scale)


def _by_parts(
    function: Callable[[Tensor, Tensor, _Zero], Tensor],
    dtype: torch.dtype,
    blocks: Tensor,
    scale: Tensor,
    zero: _Zero,
) -> Tensor:
    """A new matrix `[m, k]` of a dtype, filled by rows, and by columns where rows are long."""
    if blocks.numel() <= CHUNK or not blocks.is_cpu:
        return function(blocks, scale, zero)
    out = torch.empty(blocks.shape, dtype=dtype, device=blocks.device)
    rows, columns = blocks.shape
    step = max(1, CHUNK // columns)
    with one_thread():
        for start, left in product(range(0, rows, step), range(0, columns, CHUNK)):
            at, across = slice(start, start + step), slice(left, left + CHUNK)
            out[at, across] = function(blocks[at, across], scale[at], None if zero is None else zero[at])
    return out
