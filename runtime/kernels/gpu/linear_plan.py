"""How a linear on packed codes is cut into programs: regimes by rows, and sizes of tiles without a search.

Sizes were chosen by what can be counted without a device: machine instructions for a weight in the loop,
registers, bytes on their way to a multiprocessor, programs for each. RHOC_AUTOTUNE=1 measures instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .unpacking import layout

FEW_ROWS = 16  # in one tile of the tensor cores
TILE_ROWS = 511  # above, decoding once costs less than decoding in every tile of rows
_BLOCK_K = 128


@dataclass(frozen=True)
class Format:
    """What sizes depend on: bits, columns that share a scale (0: rows do), whether scales multiply units of
    codes instead of products, zero points, and whether codes are looked up, which takes many registers."""

    bits: int
    columns: int = 0
    per_unit: bool = False
    own_zeros: bool = False
    looked_up: bool = False


@dataclass(frozen=True)
class Few:
    """Sizes for few rows: warps that share K, `batches` of `block_k`, columns, rows, stages, parts of K."""

    warps: int
    batches: int
    block_k: int
    block_n: int
    block_m: int
    stages: int
    parts: int


@dataclass(frozen=True)
class Tile:
    """Sizes for ordinary tiles."""

    warps: int
    block_n: int
    block_m: int
    block_k: int
    stages: int


# Columns of a program by bits up to, rows up to, and columns of the weight up to (None: any). More columns
# share the work on an input and so save instructions; a program for each multiprocessor is worth more.
FEW: tuple[tuple[int, int, int | None, int], ...] = (
    (2, 8, 8192, 32),
    (2, 8, None, 64),
    (4, 8, 8192, 32),
    (4, 8, None, 64),
    (8, 16, None, 32),
)
_NARROW, _SMALL_GROUP = 32, 32
_WARPS = (16, 8, 4)
_REGISTERS = {16: 128, 8: 168, 4: 168}  # of a thread by warps: what keeps sums from being spilled
_MOST_REGISTERS = 255
_RESIDENT = 12  # warps for each multiprocessor that hide each other's latency
_BY_GROUPS = 90
_SHARED = 96 << 10  # bytes for loads under way in a program, so that a multiprocessor of sm_80 still has one


def few(rows: int, shape: tuple[int, ...], weight: Format, processors: int) -> Few:
    """The sizes for up to 16 rows.

    K is shared out to the warps of a program first; sums of programs (`parts`) take a second launch.
    """
    bits = weight.bits
    block_n = next(
        size
        for widest, most, high, size in FEW
        if bits <= widest and rows <= most and (high is None or shape[0] <= high)
    )
    # Tables, and products for each of many groups, take as many registers as twice the columns.
    heavy = weight.per_unit or weight.looked_up or 0 < weight.columns <= _SMALL_GROUP
    block_n = _NARROW if heavy else block_n
    block_m, block_k = 8 if rows <= 8 else 16, batch(bits, 0 if weight.per_unit else weight.columns)
    tiles = -(-shape[0] // block_n)
    # More rows take more registers, numbers times a scale of their own may pass through shared memory. Sums
    # of many groups for many rows are spilled by four warps on sm_80, and not by eight.
    warps = _warps(tiles, shape[1], processors, 4 if weight.per_unit else 16 if rows <= 8 else 8)
    if heavy and weight.columns and rows > 8 and not weight.per_unit and shape[1] >= 16 * _BLOCK_K:
        warps = max(warps, 8)
    batches = max(warps, warps * _BLOCK_K // block_k)
    width = batches * block_k
    loaded = width * (block_n * bits // 8 + (1 if rows == 1 else block_m) * 2)
    stages = min(4, max(2, 1 + _SHARED // loaded))
    blocks = -(-shape[1] // width)
    parts = 1 if 2 * tiles > processors else max(1, min(processors // tiles, blocks // 2))
    return Few(warps, batches, block_k, block_n, block_m, stages, parts)


def _warps(tiles: int, size: int, processors: int, limit: int) -> int:
    """As many as keep multiprocessors busy, of which K has two blocks, whole ones if any has."""
    wanted = _RESIDENT * processors / tiles
    most = next((warps for warps in reversed(_WARPS) if warps >= wanted), _WARPS[0])
    most = min(most, limit)
    fits = [warps for warps in _WARPS if warps <= most and 2 * warps * _BLOCK_K <= size] or [_WARPS[-1]]
    return next((warps for warps in fits if size % (warps * _BLOCK_K) == 0), fits[0])


def batch(bits: int, columns: int) -> int:
    """How much of K is one product: the largest power of two that divides a group, whole chunks of units.

    0 where a group has no room for a chunk.
    """
    size = min(_BLOCK_K, columns & -columns) if columns else _BLOCK_K
    return size if size >= max(32, 8 * layout(bits)[1]) else 0


# By rows up to: warps, columns, rows, block of K, stages.
TILES = ((32, (4, 64, 32, 128, 3)), (64, (8, 128, 64, 128, 3)), (None, (8, 128, 128, 128, 3)))


def tile(rows: int, weight: Format, capability: int) -> Tile:
    """The sizes for more rows on a device of that capability (80, 90, ...).

    Where a result has two sums in registers, a product that is scaled or zero points, tiles stay lower; those
    of one sum that is scaled fit where products are made by whole groups of warps.
    """
    low = weight.own_zeros or (weight.columns > 0 and capability != _BY_GROUPS)
    sizes = next(sizes for most, sizes in TILES if most is None or rows <= most or (low and most > 32))
    warps, block_n, block_m, block_k, stages = sizes
    return Tile(warps, block_n, block_m, block_k, stages)


def registers(warps: int, *, tiled: bool = False) -> int:
    """How many registers a thread may take."""
    return _MOST_REGISTERS if tiled and warps == _WARPS[1] else _REGISTERS[warps]


def autotuned() -> bool:
    """Whether sizes are to be measured where a kernel first runs."""
    return os.environ.get("RHOC_AUTOTUNE", "") == "1"
