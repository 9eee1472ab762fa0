# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The device code of `int_linear`, apart from it because importing Triton takes half a second.

Shapes: M rows of the input, N columns of the output, K numbers in a row. A word is an int32 (or a byte) of
packed codes, PER of them, the first in the lowest bits, as `packing` lays them out.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def grid_values(
    words,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    PER: tl.constexpr,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Slots FIRST, FIRST + STEP, ... of words [n, w] as values of the grid [n, w * PER / STEP], in order.

    Values are k or k + 1/2 with at most 8 significant bits, so that every OPERAND type holds them exactly.
    """
    if STEP == PER:
        codes = (words >> (FIRST * BITS)) & ((1 << BITS) - 1)
        return (codes.to(tl.float32) + OFFSET).to(OPERAND)
    else:
        even = grid_values(words, FIRST, 2 * STEP, PER, BITS, OFFSET, OPERAND)
        odd = grid_values(words, FIRST + STEP, 2 * STEP, PER, BITS, OFFSET, OPERAND)
        return tl.interleave(even, odd)


@triton.jit
def linear(
    x,
    words,
    scale,
    bias,
    out,
    M,
    N,
    K,
    x_row,
    word_row,
    scale_row,
    blocks_each,
    BITS: tl.constexpr,
    PER: tl.constexpr,
    OFFSET: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    FLOAT32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[part, m, n] = scale[n] * sum of x[m, k] * value[n, k] over the part's `blocks_each` blocks of k.

    `GROUP_BLOCKS` is how many blocks share a scale, 0 when a whole row does. With FLOAT32 the operands of the
    product are float32; else they have the dtype of x and the tensor cores add up in float32.
    """
    OPERAND: tl.constexpr = tl.float32 if FLOAT32 else x.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    # What lies past the last row or column reads the last one again, cheaper than a mask; it is not stored.
    column = tl.minimum(columns, N - 1).to(tl.int64)
    x_rows = x + tl.minimum(rows, M - 1).to(tl.int64)[:, None] * x_row
    word_rows = words + column[:, None] * word_row
    scales = scale + column * scale_row
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    last = tl.minimum((part + 1) * blocks_each, tl.cdiv(K, BLOCK_K))
    for block in range(part * blocks_each, last):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        w = block * (BLOCK_K // PER) + tl.arange(0, BLOCK_K // PER)[None, :]
        if EVEN_K:
            inputs = tl.load(x_rows + k)
            packed = tl.load(word_rows + w)
        else:
            inputs = tl.load(x_rows + k, mask=k < K, other=0.0)
            packed = tl.load(word_rows + w, mask=w < word_row, other=0)
        values = grid_values(packed.to(tl.int32), 0, 1, PER, BITS, OFFSET, OPERAND)
        if GROUP_BLOCKS:
            product = tl.dot(inputs.to(OPERAND), tl.trans(values), input_precision="ieee")
            total += product * tl.load(scales + block // GROUP_BLOCKS).to(tl.float32)[None, :]
        else:
            total = tl.dot(inputs.to(OPERAND), tl.trans(values), total, input_precision="ieee")
    if not GROUP_BLOCKS:
        total *= tl.load(scales).to(tl.float32)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + column).to(tl.float32)[None, :]
    place = (part * M + rows).to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
