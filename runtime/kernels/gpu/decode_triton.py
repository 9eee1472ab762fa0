# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that decodes a matrix of units (`unpacking`) to a dense weight, written in its own order."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import loaded, numbers_of, read_scale, read_zero


@triton.jit
def decode_units(
    words,
    scales,
    scale_table,
    zeros,
    numbers,
    factor,
    out,
    multiplier,
    N,
    K,
    word_row,
    scale_row,
    scale_rows,
    zero_row,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    PAIRS: tl.constexpr,
    TEXT: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    OPERAND: tl.constexpr,
    ZERO_BITS: tl.constexpr,
    SCALE: tl.constexpr,
    COLUMNS: tl.constexpr,
    FACTOR: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNITS: tl.constexpr,
):
    """out[n, k] = (number - zero) * scale in float32, rounded once; a unit lies in one group of COLUMNS."""
    COUNT: tl.constexpr = 2 * PAIRS
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.minimum(columns, N - 1).to(tl.int64)[:, None]
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS)[None, :]
    inside = units * COUNT < K
    taken = loaded(words + column * word_row + units * WORDS, inside, 0, WORDS, False)
    values = numbers_of(
        taken, numbers, 0.0, 0.0, BITS, PAIRS, TEXT, CONSTRAINTS, OPERAND, False, False, PLAIN
    ).to(tl.float32)
    values = values.reshape(BLOCK_N, UNITS, COUNT)
    shared = column // scale_rows
    group = units * COUNT // COLUMNS if COLUMNS > 0 else units * 0
    if ZERO_BITS >= 0:
        values -= read_zero(zeros, shared, group, zero_row, inside, ZERO_BITS)[:, :, None]
    factors = tl.zeros((BLOCK_N, UNITS), tl.float32) + multiplier
    if SCALE != "":
        factors *= read_scale(scales, scale_table, shared * scale_row + group, inside, SCALE, False)
    if FACTOR:
        factors *= tl.load(factor).to(tl.float32)
    values = (values * factors[:, :, None]).reshape(BLOCK_N, UNITS * COUNT)
    k = tl.program_id(1) * UNITS * COUNT + tl.arange(0, UNITS * COUNT)[None, :]
    tl.store(out + column * K + k, values.to(out.dtype.element_ty), mask=(k < K) & (columns < N)[:, None])
