# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that decodes number by number: any width, rows of any bytes, scales shared in any way.

The matrix is read as `StoredMatrix` says: FIRST + STEP * code (STEP 0: a table of levels), less the zero
point, times the scale of (n // scale_rows, k // COLUMNS). Slower than `linear_triton`, right for everything.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import activated, read_scale, read_zero


@triton.jit
def elements(
    codes,
    scales,
    scale_table,
    zeros,
    levels,
    row,
    k,
    K,
    code_row,
    scale_row,
    scale_rows,
    zero_row,
    BITS: tl.constexpr,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    ZERO_BITS: tl.constexpr,
    SCALE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Numbers [n, k] of the rows and the places in them, float32; 0 past the end of a row."""
    inside = (k < K) & (row >= 0)
    bit = k * BITS
    low = tl.load(codes + row * code_row + bit // 8, mask=inside, other=0).to(tl.int32)
    start = bit % 8
    if 8 % BITS != 0:
        next_byte = codes + row * code_row + bit // 8 + 1
        low |= tl.load(next_byte, mask=inside & (start + BITS > 8), other=0).to(tl.int32) << 8
    code = (low >> start) & ((1 << BITS) - 1)
    values = code.to(tl.float32) * STEP + FIRST if STEP != 0 else tl.load(levels + code)
    shared = row // scale_rows
    group = k // COLUMNS if COLUMNS > 0 else k * 0
    if ZERO_BITS >= 0:
        values -= read_zero(zeros, shared, group, zero_row, inside, ZERO_BITS)
    if SCALE != "":
        values *= read_scale(scales, scale_table, shared * scale_row + group, inside, SCALE, False)
    return tl.where(inside, values, 0.0)


@triton.jit
def decode(
    codes,
    scales,
    scale_table,
    zeros,
    levels,
    factor,
    out,
    multiplier,
    N,
    K,
    code_row,
    scale_row,
    scale_rows,
    zero_row,
    BITS: tl.constexpr,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    ZERO_BITS: tl.constexpr,
    SCALE: tl.constexpr,
    COLUMNS: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[n, k]: the dense weight."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    row = tl.minimum(n, N - 1).to(tl.int64)[:, None]
    values = elements(
        codes, scales, scale_table, zeros, levels, row, k, K, code_row, scale_row, scale_rows, zero_row,
        BITS, FIRST, STEP, ZERO_BITS, SCALE, COLUMNS,
    )  # fmt: skip
    values *= multiplier
    if FACTOR:
        values *= tl.load(factor).to(tl.float32)
    tl.store(out + row * K + k, values.to(out.dtype.element_ty), mask=(k < K) & (n < N)[:, None])


@triton.jit
def linear(
    x,
    codes,
    scales,
    scale_table,
    zeros,
    levels,
    bias,
    factor,
    out,
    multiplier,
    M,
    N,
    K,
    x_row,
    code_row,
    scale_row,
    scale_rows,
    zero_row,
    BITS: tl.constexpr,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    ZERO_BITS: tl.constexpr,
    SCALE: tl.constexpr,
    COLUMNS: tl.constexpr,
    FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FLOAT32: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[m, n]; products are of the input's type, or with FLOAT32 of float32 without its shortcuts."""
    OPERAND: tl.constexpr = tl.float32 if FLOAT32 else x.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.minimum(columns, N - 1).to(tl.int64)[:, None]
    x_rows = x + tl.minimum(rows, M - 1).to(tl.int64)[None, :] * x_row
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in range(tl.cdiv(K, BLOCK_K)):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)
        values = elements(
            codes, scales, scale_table, zeros, levels, column, k[None, :], K, code_row, scale_row, scale_rows,
            zero_row, BITS, FIRST, STEP, ZERO_BITS, SCALE, COLUMNS,
        )  # fmt: skip
        inputs = tl.load(x_rows + k[:, None], mask=(k < K)[:, None], other=0.0)
        total = tl.dot(values.to(OPERAND), inputs.to(OPERAND), total, input_precision="ieee")
    total *= multiplier
    if FACTOR:
        total *= tl.load(factor).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + column).to(tl.float32)
    result = activated(total, ACTIVATION).to(out.dtype.element_ty)
    inside = (rows < M)[None, :] & (columns < N)[:, None]
    tl.store(out + rows.to(tl.int64)[None, :] * N + columns[:, None], result, mask=inside)
