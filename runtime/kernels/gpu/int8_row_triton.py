# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The device code of the product of a single row of int8 inputs with packed weights, without tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl

from .coded_triton import completed, read, scaled


@triton.jit
def four_products(words, inputs, total, PLAIN: tl.constexpr):
    """total + the sum of the products of four signed bytes in each word."""
    if PLAIN:
        for byte in tl.static_range(4):
            left = (words << (24 - 8 * byte)) >> 24
            right = (inputs << (24 - 8 * byte)) >> 24
            total += left * right
        return total
    else:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;",
            "=r,r,r,r",
            (words, inputs, total),
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def one_row(
    x,
    x_scale,
    words,
    scale,
    scale_table,
    factor,
    zero,
    row_sums,
    bias,
    out,
    N,
    x_plane,
    group_words,
    x_group_words,
    row_words,
    unit,
    share_rows,
    scale_columns,
    zero_row,
    shift,
    zero_times,
    multiplier,
    blocks_each,
    BITS: tl.constexpr,
    PER: tl.constexpr,
    SCALE: tl.constexpr,
    FACTOR: tl.constexpr,
    ZERO: tl.constexpr,
    ZERO_FLAT: tl.constexpr,
    SHIFTED: tl.constexpr,
    GROUPED: tl.constexpr,
    X_GROUPED: tl.constexpr,
    HALF: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    PLAIN: tl.constexpr,
    QUAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """`int8_linear_triton.product` of a single row, four weights in an instruction: words are of 32 bits.

    Groups are made of QUAD words, which a thread adds up before it scales them.
    """
    MASK: tl.constexpr = (256 - (256 >> BITS)) * 0x01010101 - (1 << 32)  # the top bits of each byte, as int32
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    part = tl.program_id(1)
    of_weight = tl.minimum(column, N - 1).to(tl.int64)
    word_rows = words + of_weight * row_words
    scale_row = of_weight // share_rows
    fields = (scale, scale_table, factor, zero)
    sizes = (unit, scale_columns, zero_row, shift, zero_times)
    total = tl.zeros((BLOCK_N, BLOCK_W // QUAD), tl.float32 if GROUPED else tl.int32)
    sums = tl.zeros((BLOCK_N, BLOCK_W), tl.int32)
    ones = tl.full((BLOCK_N, BLOCK_W), 0x01010101, tl.int32)
    for block in range(part * blocks_each, tl.minimum((part + 1) * blocks_each, tl.cdiv(row_words, BLOCK_W))):
        place = block * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
        packed = read(word_rows + place, place < row_words, EVEN, True)
        if GROUPED:
            found, added = tl.zeros((BLOCK_N, BLOCK_W), tl.int32), tl.zeros((BLOCK_N, BLOCK_W), tl.int32)
        else:
            found, added = total, sums
        for p in tl.static_range(PER):
            # The same words for every row: where the weights are, so that nothing is handed around.
            wide = tl.broadcast_to(x + p * x_plane + place, (BLOCK_N, BLOCK_W))
            inputs = read(wide, place < row_words, EVEN, False)
            signed = ((packed << (8 - BITS * (p + 1))) & MASK) ^ -2139062144  # 0x80808080
            found = four_products(signed, inputs, found, PLAIN)
            if SHIFTED:
                added = four_products(inputs, ones, added, PLAIN)
        if GROUPED:
            value = tl.sum(tl.reshape(found, (BLOCK_N, BLOCK_W // QUAD, QUAD)), 2).to(tl.float32)
            added = tl.sum(tl.reshape(added, (BLOCK_N, BLOCK_W // QUAD, QUAD)), 2)
            quad = QUAD * (block * (BLOCK_W // QUAD) + tl.arange(0, BLOCK_W // QUAD)[None, :])
            inside, at = quad < row_words, quad // group_words
            value = scaled(
                value, added, scale_row, at, inside, fields, sizes, SCALE, FACTOR, ZERO, ZERO_FLAT, SHIFTED
            )
            if X_GROUPED:
                value *= tl.load(x_scale + quad // x_group_words, mask=inside, other=0.0)
            total += value
        else:
            total, sums = found, added
    result = tl.sum(total, 1)[:, None].to(tl.float32)
    half = 0.0
    if not GROUPED:
        there, added = scale_row >= 0, tl.sum(sums, 1)[:, None]
        result = scaled(
            result, added, scale_row, 0, there, fields, sizes, SCALE, FACTOR, ZERO, ZERO_FLAT, SHIFTED
        )
    if not X_GROUPED:
        each = tl.load(x_scale)
        result *= each
        half = tl.where(part == 0, each * 0.5, 0.0)
    result = completed(result * multiplier, of_weight, half, row_sums, bias, HALF, HAS_BIAS, ACTIVATION)
    tl.store(out + part.to(tl.int64) * N + column, result.to(out.dtype.element_ty), mask=column < N)
