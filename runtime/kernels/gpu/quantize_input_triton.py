# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The device code of `quantize_input`: rows are rotated, measured, rounded and stored as codes and scales.

Shapes and names are those of the fused projection (`training_kernels.triton_tiles`): a tile is M lines of W
neighbours, LINES lines or a part of a line (GROUPS of them) share a scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...training_kernels.triton_device import gathered, spread
from ...training_kernels.triton_tiles import latent, loaded, members, places, scale_of, settled


@triton.jit
def float8(level):
    """The e4m3 code of numbers that are e4m3 numbers, by their float32 pattern; NaN stays NaN."""
    pattern = level.to(tl.int32, bitcast=True)
    size = pattern & 0x7FFFFFFF
    magnitude = size.to(tl.float32, bitcast=True)
    small = (magnitude * 512.0).to(tl.int32)  # multiples of 2^-9
    code = tl.where(magnitude < 0.015625, small, (size >> 20) - (120 << 3))
    code = tl.where(level == level, code, 0x7F)
    return code | ((pattern >> 24) & 0x80)


@triton.jit
def quantize(
    x,
    codes,
    scales,
    matrix,
    signs,
    table,
    norm,
    rows,
    n,
    per_row,
    tiles,
    programs,
    multiplier,
    divisor,
    border,
    offset,
    scale_least,
    scale_most,
    unit,
    lowest,
    highest,
    shift,
    least,
    fraction,
    code_row,
    plane,
    scale_row,
    STATISTIC: tl.constexpr,
    FROM_BORDER: tl.constexpr,
    SCALE_DTYPE: tl.constexpr,
    ROUNDING: tl.constexpr,
    LEVELS: tl.constexpr,
    ROTATE: tl.constexpr,
    SIGNS: tl.constexpr,
    TERMS: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN: tl.constexpr,
    SEGMENT: tl.constexpr,
    LINES: tl.constexpr,
    GROUPS: tl.constexpr,
    M: tl.constexpr,
    W: tl.constexpr,
    INTERPRETED: tl.constexpr,
    TIMES: tl.constexpr,
    HALF: tl.constexpr,
    PLANES: tl.constexpr,
    FLOAT8: tl.constexpr,
):
    """codes = the levels of x, rotated, times TIMES (less a half with HALF), or as e4m3; scales over TIMES.

    Column k of a row is stored in plane k % PLANES at k // PLANES.
    """
    turn = loaded(matrix, ROTATE, W)
    for tile in range(tl.program_id(0), tiles, programs):
        row, column, end = places(tile, rows, n, per_row, SEGMENT, LINES, M, W)
        numbers = latent(
            x, signs, turn, norm, row, column, end, n, ROTATE, SIGNS, TERMS, DTYPE, EVEN, W, INTERPRETED
        )
        count = members(tile, n, per_row, SEGMENT, LINES, GROUPS, M, W)
        found = gathered(numbers, STATISTIC, LINES, GROUPS, M, W)
        each = scale_of(
            found,
            count.to(tl.float32),
            multiplier,
            divisor,
            border,
            offset,
            scale_least,
            scale_most,
            unit,
            STATISTIC,
            FROM_BORDER,
            SCALE_DTYPE,
            INTERPRETED,
        )
        scale = spread(each, LINES, GROUPS, M, W)
        level, _ = settled(
            numbers, scale, lowest, highest, shift, least, fraction, table, ROUNDING, LEVELS, INTERPRETED
        )
        k = column[:, None] + tl.arange(0, W)[None, :]
        if FLOAT8:
            code = float8(level)
        else:
            level = tl.where(level == level, level, 0.0)
            code = (level * TIMES - (0.5 if HALF else 0.0)).to(tl.int32)
        place = codes + row.to(tl.int64)[:, None] * code_row + (k % PLANES) * plane + k // PLANES
        tl.store(place, code.to(codes.dtype.element_ty), mask=k < end[:, None])
        measured = each * (1.0 / TIMES)
        if GROUPS > 1:
            line = tile * M + tl.arange(0, M)
            group = ((line % per_row) * GROUPS)[:, None] + tl.arange(0, GROUPS)[None, :]
            inside = (line // per_row < rows)[:, None] & (group < scale_row)
            tl.store(
                scales + (line // per_row).to(tl.int64)[:, None] * scale_row + group, measured, mask=inside
            )
        else:
            segment = tile * (M // LINES) + tl.arange(0, M // LINES)
            tl.store(scales + segment, measured, mask=segment < rows * per_row)
