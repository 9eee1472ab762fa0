# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The kernels of the fused projection: forward, backward, and the statistic of a whole tensor before it.

Each program walks over tiles of M lines (`triton_device`); the matrix of the rotation, signs [W, W] in
bfloat16, is loaded once. Numbers are read once and written once. A row [n] is cut into `per_row` segments of
SEGMENT numbers and LINES lines each, the last of which may reach past its end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_device import gathered, largest, magnitude_bits, packed, product, unpacked
from .triton_tiles import (
    bit_places,
    gathered_by_all,
    latent,
    loaded,
    passing,
    places,
    scale_of,
    settled,
    tile_scale,
    turned_back,
    written,
)


@triton.jit
def measure(
    x,
    partial,
    matrix,
    signs,
    norm,
    rows,
    n,
    per_row,
    tiles,
    programs,
    STATISTIC: tl.constexpr,
    KEPT: tl.constexpr,
    OF: tl.constexpr,
    ROTATE: tl.constexpr,
    SIGNS: tl.constexpr,
    TERMS: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN: tl.constexpr,
    SEGMENT: tl.constexpr,
    LINES: tl.constexpr,
    M: tl.constexpr,
    W: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """partial[program] = the sum or the largest magnitude of the numbers that the program's tiles hold."""
    turn = loaded(matrix, ROTATE, W)
    total = tl.zeros((M,), tl.float32)
    for tile in range(tl.program_id(0), tiles, programs):
        row, column, end = places(tile, rows, n, per_row, SEGMENT, LINES, M, W)
        numbers = latent(
            x, signs, turn, norm, row, column, end, n, ROTATE, SIGNS, TERMS, DTYPE, EVEN, W, INTERPRETED
        )
        if OF:
            numbers = tl.where(largest(numbers, KEPT, OF, M, W), numbers, 0.0)
        found = gathered(numbers, STATISTIC, 1, 1, M, W)
        if STATISTIC == "rms" or STATISTIC == "absmean":
            total += found
        else:
            total = tl.maximum(magnitude_bits(total), magnitude_bits(found)).to(tl.float32, bitcast=True)
    if STATISTIC == "rms" or STATISTIC == "absmean":
        tl.store(partial + tl.program_id(0), tl.sum(total, axis=0))
    else:
        tl.store(
            partial + tl.program_id(0), tl.max(magnitude_bits(total), axis=0).to(tl.float32, bitcast=True)
        )


@triton.jit
def project(
    x,
    out,
    bits,
    partial,
    matrix,
    signs,
    table,
    norm,
    rows,
    n,
    per_row,
    tiles,
    programs,
    numbers_in_all,
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
    half_width,
    trust,
    top,
    bound,
    STATISTIC: tl.constexpr,
    WHOLE: tl.constexpr,
    FROM_BORDER: tl.constexpr,
    SCALE_DTYPE: tl.constexpr,
    ROUNDING: tl.constexpr,
    LEVELS: tl.constexpr,
    KEPT: tl.constexpr,
    OF: tl.constexpr,
    TRUST: tl.constexpr,
    BOUND: tl.constexpr,
    ROTATE: tl.constexpr,
    BACK: tl.constexpr,
    SIGNS: tl.constexpr,
    TERMS: tl.constexpr,
    LEVEL_TERMS: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN: tl.constexpr,
    SEGMENT: tl.constexpr,
    LINES: tl.constexpr,
    GROUPS: tl.constexpr,
    PACK: tl.constexpr,
    M: tl.constexpr,
    W: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out = the projection of x, in the rotated domain unless BACK; bits = where the tests of the mask hold.

    With WHOLE the scale is that of all numbers, from the `partial` sums or maxima of `programs` programs.
    """
    turn = loaded(matrix, ROTATE, W)
    if WHOLE:
        found = gathered_by_all(partial, programs, STATISTIC, WHOLE)
        whole = scale_of(
            found,
            numbers_in_all,
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
    for tile in range(tl.program_id(0), tiles, programs):
        row, column, end = places(tile, rows, n, per_row, SEGMENT, LINES, M, W)
        numbers = latent(
            x, signs, turn, norm, row, column, end, n, ROTATE, SIGNS, TERMS, DTYPE, EVEN, W, INTERPRETED
        )
        kept = numbers
        if OF:
            stays = largest(numbers, KEPT, OF, M, W)
            kept = tl.where(stays, numbers, 0.0)
        level, scale, projected = kept, 1.0, kept
        if ROUNDING != "none":
            if WHOLE:
                scale = whole
            else:
                scale = tile_scale(
                    kept,
                    tile,
                    n,
                    per_row,
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
                    KEPT,
                    OF,
                    SEGMENT,
                    LINES,
                    GROUPS,
                    M,
                    W,
                    INTERPRETED,
                )
            level, projected = settled(
                kept, scale, lowest, highest, shift, least, fraction, table, ROUNDING, LEVELS, INTERPRETED
            )
            if OF:
                level = tl.where(stays, level, 0.0)
                projected = tl.where(stays, projected, 0.0)
        if TRUST or BOUND:
            passes = passing(numbers, projected, scale, half_width, trust, top, bound, TRUST, BOUND)
            place, inside = bit_places(bits, row, column, end, n, PACK, W)
            tl.store(place, packed(passes, PACK, M, W).to(bits.dtype.element_ty), mask=inside)
        if BACK:
            projected = turned_back(level, scale, projected, turn, norm, LEVEL_TERMS, INTERPRETED)
        written(out, projected, signs, row, column, end, n, BACK and SIGNS, EVEN, W)


@triton.jit
def backward(
    grad,
    out,
    bits,
    matrix,
    signs,
    norm,
    rows,
    n,
    per_row,
    tiles,
    programs,
    MASK: tl.constexpr,
    ROTATE: tl.constexpr,
    BACK: tl.constexpr,
    SIGNS: tl.constexpr,
    TERMS: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN: tl.constexpr,
    PACK: tl.constexpr,
    M: tl.constexpr,
    W: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out = grad, rotated with ROTATE, zero where a bit is, rotated back with BACK."""
    TURNS: tl.constexpr = ROTATE or BACK
    turn = loaded(matrix, TURNS, W)
    for tile in range(tl.program_id(0), tiles, programs):
        row, column, end = places(tile, rows, n, per_row, W, 1, M, W)
        numbers = latent(
            grad,
            signs,
            turn,
            norm,
            row,
            column,
            end,
            n,
            ROTATE,
            ROTATE and SIGNS,
            TERMS,
            DTYPE,
            EVEN,
            W,
            INTERPRETED,
        )
        if MASK:
            place, inside = bit_places(bits, row, column, end, n, PACK, W)
            words = tl.load(place, mask=inside, other=0)
            numbers = tl.where(unpacked(words, PACK, M, W), numbers, 0.0)
        if BACK:
            numbers = product(numbers, turn, TERMS, INTERPRETED) * norm
        written(out, numbers, signs, row, column, end, n, BACK and SIGNS, EVEN, W)
