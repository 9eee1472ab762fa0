# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The device code of `norm_enter` and of rotations alone: a row, or a part of one, in a program.

A tile is M lines of W neighbours, all of one row: where its segments (of LINES lines each, or parts of lines)
are fewer than M / LINES, the others lie past its end. Names are those of `training_kernels.triton_tiles`. A
Hadamard block longer than a line is turned along lines, and then across them, by the matrix `outer` [M, M].
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...training_kernels.triton_device import gathered, high_part, product, rounded, spread, tile_rounded
from ...training_kernels.triton_tiles import loaded, members, places, scale_of, settled, written


@triton.jit
def normed(
    numbers,
    inside,
    weight,
    bias,
    columns,
    n,
    eps,
    NORM: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A row [M, W] under a norm, rounded to the dtype as torch rounds it; zeros outside."""
    if NORM == "layer_norm":
        mean = tl.sum(tl.sum(numbers, 1), 0) / n
        numbers = tl.where(inside, numbers - mean, 0.0)
    square = tl.sum(tl.sum(numbers * numbers, 1), 0) / n
    numbers *= 1.0 / tl.sqrt_rn(square + eps)
    if WEIGHT:
        numbers *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        numbers += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    return rounded(numbers, DTYPE, INTERPRETED)


@triton.jit
def across(outer, x, TERMS: tl.constexpr, INTERPRETED: tl.constexpr):
    """A matrix [M, M] of zeros and signs times x [M, W], added up in float32, as `product`."""
    if INTERPRETED:
        total = tl.dot(outer, x, input_precision="ieee")
    else:
        high = high_part(x)
        rest = x - high
        total = tl.dot(outer, high.to(tl.bfloat16))
        if TERMS > 2:
            middle = high_part(rest)
            total = tl.dot(outer, middle.to(tl.bfloat16), total)
            rest -= middle
        total = tl.dot(outer, rest.to(tl.bfloat16), total)
    return total


@triton.jit
def norm_enter(
    x,
    out,
    weight,
    bias,
    matrix,
    outer,
    signs,
    table,
    norm,
    rows,
    n,
    x_row,
    per_row,
    eps,
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
    NORM: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    STATISTIC: tl.constexpr,
    FROM_BORDER: tl.constexpr,
    SCALE_DTYPE: tl.constexpr,
    ROUNDING: tl.constexpr,
    LEVELS: tl.constexpr,
    ROTATE: tl.constexpr,
    SIGNS: tl.constexpr,
    OUTER: tl.constexpr,
    TERMS: tl.constexpr,
    DTYPE: tl.constexpr,
    SEGMENT: tl.constexpr,
    LINES: tl.constexpr,
    GROUPS: tl.constexpr,
    M: tl.constexpr,
    W: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out = the projection of the rotated norm of x, left rotated; without ROUNDING, rotated only."""
    turn = loaded(matrix, ROTATE, W)
    row, column, end = places(tl.program_id(0), rows, n, per_row, SEGMENT, LINES, M, W)
    columns = column[:, None] + tl.arange(0, W)[None, :]
    inside = columns < end[:, None]
    numbers = tl.load(x + row.to(tl.int64)[:, None] * x_row + columns, mask=inside, other=0.0).to(tl.float32)
    if NORM != "":
        numbers = normed(
            numbers, inside, weight, bias, columns, n, eps, NORM, WEIGHT, BIAS, DTYPE, INTERPRETED
        )
    if SIGNS:
        numbers *= tl.load(signs + columns, mask=inside, other=0.0)
    if ROTATE:
        numbers = product(numbers, turn, TERMS, INTERPRETED)
        if OUTER:
            numbers = across(loaded(outer, True, M), numbers, 3 if DTYPE == "float32" else 2, INTERPRETED)
        numbers = tile_rounded(numbers * norm, DTYPE, INTERPRETED)
    if ROUNDING != "none":
        count = members(tl.program_id(0), n, per_row, SEGMENT, LINES, GROUPS, M, W)
        each = scale_of(
            gathered(numbers, STATISTIC, LINES, GROUPS, M, W),
            tl.maximum(count, 1).to(tl.float32),  # of segments past the end
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
        _, numbers = settled(
            numbers, scale, lowest, highest, shift, least, fraction, table, ROUNDING, LEVELS, INTERPRETED
        )
    written(out, numbers, signs, row, column, end, n, False, False, W)
