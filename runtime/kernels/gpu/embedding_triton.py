# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The device code of `embedding`: rows that tokens name, decoded."""

from __future__ import annotations

import triton
import triton.language as tl

from .coded_triton import codes_at, scale_at, zero_at


@triton.jit
def gather(
    tokens,
    words,
    levels,
    scale,
    scale_table,
    factor,
    zero,
    out,
    N,
    K,
    row_bytes,
    unit,
    share_rows,
    share_columns,
    scale_columns,
    zero_row,
    BITS: tl.constexpr,
    SCALE: tl.constexpr,
    FACTOR: tl.constexpr,
    ZERO: tl.constexpr,
    ZERO_FLAT: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[t, k] = (level of the code - zero) scale of row tokens[t]; NaN for rows that do not exist."""
    token = tl.load(tokens + tl.program_id(0)).to(tl.int64)
    there = (token >= 0) & (token < N)
    row = tl.where(there, token, 0)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = k < K
    value = tl.load(levels + codes_at(words + row * row_bytes, k, inside, row_bytes, BITS))
    scale_row, column = row // share_rows, k // share_columns
    if ZERO >= 0:
        value -= zero_at(zero, scale_row, column, inside, zero_row, ZERO, ZERO_FLAT)
    if SCALE != "none":
        place = scale_row * scale_columns + column
        value *= scale_at(scale, scale_table, factor, unit, place, inside, SCALE, FACTOR)
    value = tl.where(there, value, float("nan"))
    tl.store(out + tl.program_id(0).to(tl.int64) * K + k, value.to(out.dtype.element_ty), mask=inside)
