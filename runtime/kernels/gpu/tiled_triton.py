# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that the formats of `tiled` share: the product, and writing a weight out dense.

What is of one format is a function DECODE: it gives units of the weight, `[b, n, u, count]` numbers of
OPERAND in their order along K. `stored` is a tuple of pointers and numbers, FORM one of constants, and only
DECODE knows what is in them. The weight is the first operand of the product, and its rows are turned, [u / 4,
4, p, 2] to [u / 4, p, 4, 2] in places of units, pairs in them, and the two of a pair, so that a thread has
all of a unit: then what it decodes is what it hands to the tensor cores. The input is turned alike.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .numbers_triton import activated, read_scale
from .sides_triton import SIDE

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def numbers_in_order(numbers, FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr):
    """Tensors FIRST, FIRST + STEP, ... of COUNT along new last dimensions of two, in order."""
    if STEP == COUNT:
        return numbers[FIRST]
    else:
        even = numbers_in_order(numbers, FIRST, 2 * STEP, COUNT)
        odd = numbers_in_order(numbers, FIRST + STEP, 2 * STEP, COUNT)
        return tl.join(even, odd)


@triton.jit
def turned(x, A: tl.constexpr, B: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    """Rows [A, B, K] with the pairs of four units taken in turns."""
    parts = x.reshape(A, B, K // (8 * PAIRS), 4, PAIRS // SIDE, SIDE, 2).permute(0, 1, 2, 4, 3, 5, 6)
    return parts.reshape(A, B, K)


@triton.jit
def scales_of(scale, row, unit, inside, SHARE: tl.constexpr):
    """The scales of units, where SHARE is as `tiled.Share` has it."""
    place = row // SHARE[2] * SHARE[4] + unit // SHARE[3]
    KIND: tl.constexpr = SHARE[1]  # text is given on by name: Triton 3.6 takes no part of a constant
    return read_scale(scale[0], scale[1], place, inside & (row >= 0), KIND, False)


@triton.jit
def added(
    total,
    x,
    stored,
    scale,
    M,
    K,
    x_row,
    row,
    inputs,
    first,
    last,
    DECODE: tl.constexpr,
    FORM: tl.constexpr,
    PAIRS: tl.constexpr,
    SHARE: tl.constexpr,
    OPERAND: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The total [b, n, m] with the products of blocks first to last: each is BATCHES times BLOCK_K of K."""
    UNITS: tl.constexpr = BLOCK_K // (2 * PAIRS)
    batch = tl.arange(0, BATCHES)[:, None, None]
    units = tl.arange(0, UNITS)[None, None, :]
    numbers = tl.arange(0, BLOCK_K)[None, None, :]
    x_rows = x + tl.minimum(inputs, M - 1).to(tl.int64)[None, :, None] * x_row
    for block in tl.range(first, last, num_stages=STAGES):
        at = block * BATCHES + batch
        unit = at * UNITS + units
        inside = unit * (2 * PAIRS) < K
        values = DECODE(stored, FORM, row, unit, inside, K, OPERAND)
        k = at * BLOCK_K + numbers
        given = tl.load(x_rows + k, mask=(k < K) & (inputs < M)[None, :, None], other=0.0)
        if SHARE[0] == "unit":
            own = scales_of(scale, row, unit, inside, SHARE)
            values = (values.to(tl.float32) * own[:, :, :, None]).to(OPERAND)
        weight = turned(values.reshape(BATCHES, BLOCK_N, BLOCK_K), BATCHES, BLOCK_N, BLOCK_K, PAIRS)
        given = turned(given.to(OPERAND), BATCHES, BLOCK_X, BLOCK_K, PAIRS)
        given = tl.permute(tl.broadcast_to(given, (BATCHES, BLOCK_M, BLOCK_K)), (0, 2, 1))
        if SHARE[0] == "block":
            own = scales_of(scale, row, at * UNITS, at * BLOCK_K < K, SHARE)
            total += tl.dot(weight, given, input_precision="ieee") * own
        else:
            total = tl.dot(weight, given, total, input_precision="ieee")
    return total


@triton.jit
def rows_scaled(total, scale, row, SHARE: tl.constexpr):
    """A result [n, m] times the scale of its row or of all."""
    if SHARE[0] == "row":
        total *= scales_of(scale, row, 0, row >= 0, SHARE)[:, None]
    return total


@triton.jit
def linear(
    x,
    stored,
    scale,
    multiplier,
    low,
    low_stored,
    low_scale,
    low_multiplier,
    rank,
    bias,
    out,
    M,
    N,
    K,
    x_row,
    part_blocks,
    DECODE: tl.constexpr,
    FORM: tl.constexpr,
    PAIRS: tl.constexpr,
    SHARE: tl.constexpr,
    LOW: tl.constexpr,
    LOW_FORM: tl.constexpr,
    LOW_PAIRS: tl.constexpr,
    LOW_SHARE: tl.constexpr,
    HAS_LOW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FLOAT32: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[part, m, n] = sum of x[m, k] * weight[n, k] over the part's blocks, `part_blocks` of them.

    SHARE says where scales come in, as in `tiled.Share`. With HAS_LOW the first part adds a second product,
    of the rows `low` [M, rank] and a weight [N, rank], decoded by LOW as the first is by DECODE.
    """
    OPERAND: tl.constexpr = tl.float32 if FLOAT32 else x.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    given = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_X)  # of one row that all of a tile have
    part = tl.program_id(2)
    # What lies past the last row reads the last one again, cheaper than a mask; it is not stored.
    row = tl.minimum(columns, N - 1).to(tl.int64)
    first = part * part_blocks
    last = tl.minimum(first + part_blocks, tl.cdiv(K, BATCHES * BLOCK_K))
    total = tl.zeros((BATCHES, BLOCK_N, BLOCK_M), tl.float32)
    total = added(
        total, x, stored, scale, M, K, x_row, row[None, :, None], given, first, last,
        DECODE, FORM, PAIRS, SHARE, OPERAND, BATCHES, BLOCK_N, BLOCK_M, BLOCK_X, BLOCK_K, STAGES,
    )  # fmt: skip
    result = rows_scaled(tl.sum(total, 0) * multiplier, scale, row, SHARE)
    if HAS_LOW:
        blocks = tl.where(part == 0, tl.cdiv(rank, BATCHES * BLOCK_K), 0)
        second = tl.zeros((BATCHES, BLOCK_N, BLOCK_M), tl.float32)
        second = added(
            second, low, low_stored, low_scale, M, rank, rank, row[None, :, None], given, 0, blocks,
            LOW, LOW_FORM, LOW_PAIRS, LOW_SHARE, OPERAND, BATCHES, BLOCK_N, BLOCK_M, BLOCK_X, BLOCK_K, STAGES,
        )  # fmt: skip
        result += rows_scaled(tl.sum(second, 0) * low_multiplier, low_scale, row, LOW_SHARE)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)[:, None]
    place = (part * M + inputs).to(tl.int64)[None, :] * N + columns[:, None]
    inside = (columns < N)[:, None] & (inputs < M)[None, :]
    tl.store(out + place, activated(result, ACTIVATION).to(out.dtype.element_ty), mask=inside)


@triton.jit
def decode(
    stored,
    scale,
    multiplier,
    out,
    N,
    K,
    DECODE: tl.constexpr,
    FORM: tl.constexpr,
    PAIRS: tl.constexpr,
    SHARE: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNITS: tl.constexpr,
):
    """out[n, k] = weight[n, k], rounded once to the dtype of `out`. SHARE "block" does not occur."""
    COUNT: tl.constexpr = 2 * PAIRS
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(columns, N - 1).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)[None, None, :]
    inside = unit * COUNT < K
    values = DECODE(stored, FORM, row[None, :, None], unit, inside, K, OPERAND).to(tl.float32) * multiplier
    if SHARE[0] == "unit":
        values *= scales_of(scale, row[None, :, None], unit, inside, SHARE)[:, :, :, None]
    values = rows_scaled(values.reshape(BLOCK_N, UNITS * COUNT), scale, row, SHARE)
    k = tl.program_id(1) * UNITS * COUNT + tl.arange(0, UNITS * COUNT)[None, :]
    inside = (columns < N)[:, None] & (k < K)
    tl.store(out + row[:, None] * K + k, values.to(out.dtype.element_ty), mask=inside)
