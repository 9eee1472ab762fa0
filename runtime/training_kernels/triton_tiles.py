# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What the kernels of the fused projection do with a tile: load it, scale it, round it, test it, store it."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_device import (
    divided,
    finished,
    gathered,
    magnitude_bits,
    product,
    shared_exponent,
    spread,
    stored,
    tile_rounded,
    to_grid,
)


@triton.jit
def places(
    tile, rows, n, per_row, SEGMENT: tl.constexpr, LINES: tl.constexpr, M: tl.constexpr, W: tl.constexpr
):
    """Of each line of a tile [M]: its row, its first column, where its segment ends (0 past the last row)."""
    line = tile * M + tl.arange(0, M)
    segment = line // LINES
    row = segment // per_row
    first = (segment % per_row) * SEGMENT
    end = tl.where(row < rows, tl.minimum(first + SEGMENT, n), 0)
    return row, first + (line % LINES) * W, end


@triton.jit
def loaded(matrix, WANTED: tl.constexpr, W: tl.constexpr):
    """The matrix of the rotation [W, W], or nothing."""
    if WANTED:
        return tl.load(matrix + tl.arange(0, W)[:, None] * W + tl.arange(0, W)[None, :])
    else:
        return 0.0


@triton.jit
def latent(
    x,
    signs,
    turn,
    norm,
    row,
    column,
    end,
    n,
    ROTATE: tl.constexpr,
    SIGNS: tl.constexpr,
    TERMS: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN: tl.constexpr,
    W: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The numbers of a tile [M, W], rotated and rounded as the stage rounds them; zeros past the end."""
    columns = column[:, None] + tl.arange(0, W)[None, :]
    inside = (end > 0)[:, None] if EVEN else columns < end[:, None]
    numbers = tl.load(x + row.to(tl.int64)[:, None] * n + columns, mask=inside, other=0.0).to(tl.float32)
    if SIGNS:
        numbers *= tl.load(signs + columns, mask=inside, other=0.0)
    if ROTATE:
        numbers = tile_rounded(product(numbers, turn, TERMS, INTERPRETED) * norm, DTYPE, INTERPRETED)
    return numbers


@triton.jit
def written(
    out,
    values,
    signs,
    row,
    column,
    end,
    n,
    SIGNS: tl.constexpr,
    EVEN: tl.constexpr,
    W: tl.constexpr,
):
    """Store a tile [M, W] in the dtype of `out`."""
    columns = column[:, None] + tl.arange(0, W)[None, :]
    inside = (end > 0)[:, None] if EVEN else columns < end[:, None]
    if SIGNS:
        values *= tl.load(signs + columns, mask=inside, other=0.0)
    place = out + row.to(tl.int64)[:, None] * n + columns
    tl.store(place, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def bit_places(bits, row, column, end, n, PACK: tl.constexpr, W: tl.constexpr):
    """Where the integers of a tile's mask lie [M, W / PACK], and which of them there are."""
    words = column[:, None] // PACK + tl.arange(0, W // PACK)[None, :]
    each_row = (n + PACK - 1) // PACK
    inside = words < ((end + PACK - 1) // PACK)[:, None]
    return bits + row.to(tl.int64)[:, None] * each_row + words, inside


@triton.jit
def members(
    tile,
    n,
    per_row,
    SEGMENT: tl.constexpr,
    LINES: tl.constexpr,
    GROUPS: tl.constexpr,
    M: tl.constexpr,
    W: tl.constexpr,
):
    """How many numbers of a row share each scale of a tile, at least 1; shaped like the scales."""
    if GROUPS > 1:
        line = tile * M + tl.arange(0, M)
        group = tl.arange(0, GROUPS) * (W // GROUPS)
        left = n - ((line % per_row) * W)[:, None] - group[None, :]
        return tl.minimum(tl.maximum(left, 1), W // GROUPS)
    else:
        segment = tile * (M // LINES) + tl.arange(0, M // LINES)
        return tl.minimum(n - (segment % per_row) * SEGMENT, SEGMENT)


@triton.jit
def scale_of(
    found,
    count,
    multiplier,
    divisor,
    border,
    offset,
    least,
    most,
    unit,
    STATISTIC: tl.constexpr,
    FROM_BORDER: tl.constexpr,
    SCALE_DTYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The distance of levels from the sums or maxima of `count` numbers each."""
    statistic = finished(found, count, STATISTIC)
    if STATISTIC == "power":
        scale = shared_exponent(statistic, border, offset, FROM_BORDER)
    else:
        scale = tl.div_rn(statistic * multiplier, divisor)
    return stored(scale, least, most, SCALE_DTYPE, STATISTIC == "signed", INTERPRETED) * unit


@triton.jit
def tile_scale(
    kept,
    tile,
    n,
    per_row,
    multiplier,
    divisor,
    border,
    offset,
    least,
    most,
    unit,
    STATISTIC: tl.constexpr,
    FROM_BORDER: tl.constexpr,
    SCALE_DTYPE: tl.constexpr,
    KEPT: tl.constexpr,
    OF: tl.constexpr,
    SEGMENT: tl.constexpr,
    LINES: tl.constexpr,
    GROUPS: tl.constexpr,
    M: tl.constexpr,
    W: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The distance of levels at every number of a tile [M, W], or [M, 1] where lines have one."""
    count = members(tile, n, per_row, SEGMENT, LINES, GROUPS, M, W)
    if OF:
        count = count * KEPT // OF
    found = gathered(kept, STATISTIC, LINES, GROUPS, M, W)
    each = scale_of(
        found,
        count.to(tl.float32),
        multiplier,
        divisor,
        border,
        offset,
        least,
        most,
        unit,
        STATISTIC,
        FROM_BORDER,
        SCALE_DTYPE,
        INTERPRETED,
    )
    return spread(each, LINES, GROUPS, M, W)


@triton.jit
def settled(
    numbers,
    scale,
    lowest,
    highest,
    shift,
    least,
    fraction,
    table,
    ROUNDING: tl.constexpr,
    LEVELS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The nearest level of each number of a tile, in units of the scale, and times the scale.

    Numbers are brought within the ends of the grid first, so that no quotient overflows. NaN stays NaN.
    """
    low, high = lowest * scale, highest * scale
    level = tl.maximum(numbers, tl.minimum(low, high), propagate_nan=tl.PropagateNan.ALL)
    level = tl.minimum(level, tl.maximum(low, high), propagate_nan=tl.PropagateNan.ALL)
    level = to_grid(divided(level, scale, INTERPRETED), least, fraction, table, ROUNDING, LEVELS)
    if ROUNDING == "floor":
        projected = tl.fma(level, scale, shift * scale)  # (level + shift) * scale, rounded once
        level += shift
    else:
        projected = level * scale
    return level, projected


@triton.jit
def passing(
    numbers, projected, scale, half_width, trust, top, bound, TRUST: tl.constexpr, BOUND: tl.constexpr
):
    """True where the tests of the mask hold; one of them is wanted."""
    size = tl.abs(scale)
    if TRUST:
        passes = tl.abs(projected - numbers) <= size * half_width * trust
        if BOUND:
            passes = passes & (tl.abs(numbers) <= size * top * bound)
    else:
        passes = tl.abs(numbers) <= size * top * bound
    return passes


@triton.jit
def turned_back(
    level,
    scale,
    projected,
    turn,
    norm,
    LEVEL_TERMS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A projection rotated back: from its levels where bfloat16 holds them, and lines have one scale."""
    if LEVEL_TERMS == 1:
        return product(level, turn, 1, INTERPRETED) * (scale * norm)
    else:
        return product(projected, turn, LEVEL_TERMS, INTERPRETED) * norm


@triton.jit
def gathered_by_all(partial, programs, STATISTIC: tl.constexpr, WHOLE: tl.constexpr):
    """The sum or maximum of what `programs` programs measured; WHOLE is a power of two that holds them."""
    every = tl.arange(0, WHOLE)
    found = tl.load(partial + every, mask=every < programs, other=0.0)
    if STATISTIC == "rms" or STATISTIC == "absmean":
        return tl.sum(found, axis=0)
    else:
        return tl.max(magnitude_bits(found), axis=0).to(tl.float32, bitcast=True)
