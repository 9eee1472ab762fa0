# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code of the weight-only linear on words of codes; importing Triton takes half a second, so apart.

Shapes: M rows of the input, N columns of the output, K numbers in a row. The weight is the first operand of
the product, so that its codes become numbers in the registers that the tensor cores read: a thread has whole
units of a row (`unpacking`), of which code j of both lanes is its share of step j of the product. That is
another order of K than the input's, whose rows are therefore turned: [K / 8P, 8, P] to [K / 8P, P, 8]. Few
rows know other orders (`operands_triton`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import activated, loaded, numbers_of, read_scale, read_zero, result_of
from .operands_triton import (
    apart,
    codes_as_operand,
    constants,
    inputs_as_operand,
    lost,
    ones_as_operand,
    row_by_row,
    scales_of_units,
    taken_from,
    word_places,
)


@triton.jit
def few(
    x,
    words,
    scales,
    scale_table,
    zeros,
    numbers,
    bias,
    factor,
    out,
    multiplier,
    M,
    N,
    K,
    x_row,
    word_row,
    scale_row,
    scale_rows,
    zero_row,
    part_blocks,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    PAIRS: tl.constexpr,
    TEXT: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    BASE: tl.constexpr,
    LESS: tl.constexpr,
    ZERO_BITS: tl.constexpr,
    SCALE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PER_UNIT: tl.constexpr,
    LANES: tl.constexpr,
    SIDE: tl.constexpr,
    FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    PLAIN: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[part, m, n] for the few rows of x that one tile holds; K is shared out to warps, and to parts.

    A block is BATCHES times BLOCK_K of K: a product by batches, which warps take. Where groups of COLUMNS
    share a scale, a batch lies in one and its product is scaled; with PER_UNIT numbers are. Numbers are above
    codes by what BASE makes and by LESS, and by zero points (ZERO_BITS -1: none, 0: floats): this is lost
    from sums of the input, which the tensor cores add up as well, block by block, before it can weigh.
    LANES is that of `operands_triton`.
    """
    OPERAND: tl.constexpr = tl.float32 if PLAIN else x.dtype.element_ty
    COUNT: tl.constexpr = 2 * PAIRS
    UNITS: tl.constexpr = BLOCK_K // COUNT
    GROUPED: tl.constexpr = COLUMNS > 0 and not PER_UNIT
    OWN_ZERO: tl.constexpr = ZERO_BITS >= 0 and not PER_UNIT
    UNIT_ZERO: tl.constexpr = ZERO_BITS >= 0 and PER_UNIT
    BY_ROW: tl.constexpr = SCALE != "" and COLUMNS == 0
    column = tl.minimum(tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
    shared = column // scale_rows
    batch = tl.arange(0, BATCHES)
    row, k = row_by_row(BATCHES, BLOCK_X, BLOCK_K)
    first = tl.program_id(1) * part_blocks
    last = tl.minimum(first + part_blocks, tl.cdiv(K, BATCHES * BLOCK_K))
    # Places move on block by block, so that what loads have in common is added once.
    x_places = x + (tl.minimum(row, M - 1).to(tl.int64) * x_row + k)
    x_places += first * (BATCHES * BLOCK_K)
    WIDE: tl.constexpr = BATCHES * UNITS * (2 if LANES == "halves" else WORDS)
    places, word_unit = word_places(words, N, word_row, WORDS, UNITS, BATCHES, BLOCK_N, BLOCK_K, LANES)
    places += first * WIDE
    GROUPS: tl.constexpr = BATCHES * BLOCK_K // COLUMNS if GROUPED else 0
    WHOLE: tl.constexpr = GROUPED and GROUPS * COLUMNS == BATCHES * BLOCK_K  # groups of a block
    scale_places = scales + shared[None, :] * scale_row
    if WHOLE:
        scale_places = scale_places + (first * GROUPS + batch // (COLUMNS // BLOCK_K))[:, None]
    total = tl.zeros((BATCHES, BLOCK_N, BLOCK_M), tl.float32)
    base = constants(N, BASE, PAIRS, OPERAND, LANES, SIDE, BATCHES, BLOCK_K)
    row_less = 0.0
    if OWN_ZERO and not GROUPED:
        row_less = read_zero(zeros, shared, 0, zero_row, column >= 0, ZERO_BITS)[None, :, None] + LESS
    for block in tl.range(first, last, num_stages=STAGES):
        known_words = block * (BATCHES * UNITS) + word_unit < K // COUNT
        taken = taken_from(places, known_words, WORDS, UNITS, BATCHES, BLOCK_N, BLOCK_K, EVEN, LANES)
        known_k = None if EVEN else block * (BATCHES * BLOCK_K) + k < K
        inputs = tl.load(x_places, mask=known_k, other=None if EVEN else 0.0, eviction_policy="evict_last")
        less = row_less
        if GROUPED:
            at = block * BATCHES + batch  # batches of K
            group = at // (COLUMNS // BLOCK_K)
            known = (at * BLOCK_K < K)[:, None]
            further = 0 if WHOLE else group[:, None]
            scale = read_scale(scale_places, scale_table, further, known, SCALE, EVEN)[:, :, None]
            if OWN_ZERO:
                group_zero = read_zero(zeros, shared[None, :], group[:, None], zero_row, known, ZERO_BITS)
                less = group_zero[:, :, None] + LESS
        zero, own = 0.0, 0.0
        if PER_UNIT:
            own, zero = scales_of_units(
                scales, scale_table, zeros, block, N, K, scale_row, scale_rows, zero_row, SCALE, COLUMNS,
                ZERO_BITS, EVEN, COUNT, BATCHES, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        values = codes_as_operand(
            taken, numbers, zero, own, BITS, PAIRS, TEXT, CONSTRAINTS, OPERAND, UNIT_ZERO, PER_UNIT, PLAIN,
            LANES, SIDE, BATCHES, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        inputs = inputs.reshape(BATCHES, BLOCK_X, BLOCK_K)
        inputs = inputs_as_operand(inputs, PAIRS, OPERAND, LANES, SIDE, BATCHES, BLOCK_X, BLOCK_M, BLOCK_K)
        start = lost(inputs, base, less, BASE != "", LESS, OWN_ZERO, BLOCK_N)
        if GROUPED:
            total += tl.dot(values, inputs, start, input_precision="ieee") * scale
        else:
            total = tl.dot(values, inputs, total, input_precision="ieee")
            total = total + start if BASE != "" or LESS != 0 or OWN_ZERO else total
        x_places += BATCHES * BLOCK_K
        places += WIDE
        scale_places += GROUPS
    row_scale = multiplier
    if BY_ROW:
        row_scale = read_scale(scales, scale_table, shared * scale_row, column >= 0, SCALE, EVEN)
    total = tl.sum(total, 0)
    result = result_of(
        total, column, row_scale, bias, factor, multiplier, BY_ROW, FACTOR, HAS_BIAS, ACTIVATION
    )
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    place = (tl.program_id(1) * M + row).to(tl.int64)[None, :] * N + columns[:, None]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=(row < M)[None, :] & (columns < N)[:, None])


@triton.jit
def finish(
    parts, bias, out, count, M, N, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    """out[m, n]: the sum of `count` parts in order, the bias, the activation."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < M * N
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(count):
        total += tl.load(parts + part * M * N + place, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + place % N, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, activated(total, ACTIVATION).to(out.dtype.element_ty), mask=inside)


@triton.jit
def tile(
    x,
    words,
    scales,
    scale_table,
    zeros,
    numbers,
    bias,
    factor,
    out,
    multiplier,
    M,
    N,
    K,
    x_row,
    word_row,
    scale_row,
    scale_rows,
    zero_row,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    PAIRS: tl.constexpr,
    TEXT: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    ZERO_BITS: tl.constexpr,
    SCALE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PER_UNIT: tl.constexpr,
    SIDE: tl.constexpr,
    FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[m, n] by ordinary tiles: numbers are levels, or codes where zero points are given.

    Where groups of COLUMNS share a scale, products of blocks in one are scaled, or with PER_UNIT numbers.
    """
    OPERAND: tl.constexpr = tl.float32 if PLAIN else x.dtype.element_ty
    UNITS: tl.constexpr = BLOCK_K // (2 * PAIRS)
    COUNT: tl.constexpr = 2 * PAIRS
    GROUPED: tl.constexpr = COLUMNS > 0 and not PER_UNIT
    OWN_ZERO: tl.constexpr = ZERO_BITS >= 0 and not PER_UNIT
    UNIT_ZERO: tl.constexpr = ZERO_BITS >= 0 and PER_UNIT
    BY_ROW: tl.constexpr = SCALE != "" and COLUMNS == 0
    column = tl.minimum(tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
    shared = column // scale_rows
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    unit = tl.arange(0, UNITS)
    k = tl.arange(0, BLOCK_K)
    x_rows = x + tl.minimum(rows, M - 1).to(tl.int64)[:, None] * x_row
    word_rows = words + column[:, None] * word_row
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if OWN_ZERO and not GROUPED:
        row_zero = read_zero(zeros, shared, 0, zero_row, column >= 0, ZERO_BITS)[:, None]
    for block in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
        units = block * UNITS + unit[None, :]
        inside = units * COUNT < K
        taken = loaded(word_rows + units * WORDS, inside, 0, WORDS, EVEN)
        place = block * BLOCK_K + k[None, :]
        known_k = None if EVEN else place < K
        inputs = tl.load(
            x_rows + place, mask=known_k, other=None if EVEN else 0.0, eviction_policy="evict_last"
        )
        if GROUPED:
            group = block // (COLUMNS // BLOCK_K)
            known = column >= 0
            scale = read_scale(scales, scale_table, shared * scale_row + group, known, SCALE, True)[:, None]
            if OWN_ZERO:
                row_zero = read_zero(zeros, shared, group, zero_row, known, ZERO_BITS)[:, None]
        zero, own = 0.0, 0.0
        if PER_UNIT:
            group = units * COUNT // COLUMNS
            scale_at = shared[:, None] * scale_row + group
            own = read_scale(scales, scale_table, scale_at, inside, SCALE, EVEN)
            if UNIT_ZERO:
                zero = read_zero(zeros, shared[:, None], group, zero_row, inside, ZERO_BITS)
        values = numbers_of(
            taken, numbers, zero, own, BITS, PAIRS, TEXT, CONSTRAINTS, OPERAND, UNIT_ZERO, PER_UNIT, PLAIN
        )
        values = apart(values, 1, BLOCK_N, BLOCK_K, PAIRS, SIDE).reshape(BLOCK_N, BLOCK_K)
        inputs = apart(inputs, 1, BLOCK_M, BLOCK_K, PAIRS, SIDE).reshape(BLOCK_M, BLOCK_K)
        inputs = inputs.to(OPERAND).permute(1, 0)
        start = tl.zeros((BLOCK_N, BLOCK_M), tl.float32) if GROUPED else total
        product = tl.dot(values, inputs, start, input_precision="ieee")
        if OWN_ZERO:
            ones = ones_as_operand(BLOCK_N, BLOCK_K, OPERAND, SIDE)
            product -= row_zero * tl.dot(ones, inputs, input_precision="ieee")
        total = total + product * scale if GROUPED else product
    row_scale = multiplier
    if BY_ROW:
        row_scale = read_scale(scales, scale_table, shared * scale_row, column >= 0, SCALE, EVEN)
    result = result_of(
        total, column, row_scale, bias, factor, multiplier, BY_ROW, FACTOR, HAS_BIAS, ACTIVATION
    ).to(out.dtype.element_ty)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < M)[None, :] & (columns < N)[:, None]
    tl.store(out + rows.to(tl.int64)[None, :] * N + columns[:, None], result, mask=inside)
