# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The device code of `cache_attention`: a part of the slots of a head in a program, softmax along with them.

R rows are the queries of one head of the cache; D features. Codes become levels of the grid, by a line
(FIRST, STEP) or a table; scales of whole tokens are applied to scores and shares, those of groups to numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .coded_triton import codes_at, in_order, scale_at, zero_at


@triton.jit
def numbers_at(
    words,
    levels,
    scale,
    scale_table,
    zero,
    slot,
    here,
    word_slot,
    scale_slot,
    zero_slot,
    row_bytes,
    group,
    unit,
    first,
    step,
    features,
    BITS: tl.constexpr,
    LINE: tl.constexpr,
    SCALE: tl.constexpr,
    ZERO: tl.constexpr,
    GROUPED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Numbers [BLOCK_S, D] of slots, without the scales of whole tokens, and these scales [BLOCK_S]."""
    d = tl.arange(0, D)[None, :]
    inside = here[:, None] & (d < features)
    rows = words + slot[:, None] * word_slot
    if LINE and 8 % BITS == 0:
        PER: tl.constexpr = 8 // BITS
        byte = tl.arange(0, D // PER)[None, :]
        packed = tl.load(rows + byte, mask=here[:, None] & (byte < row_bytes), other=0).to(tl.int32)
        value = in_order(packed, 0, 1, PER, BITS)
        value = (value + (1 << (BITS - 1))) * step + first
    else:
        value = tl.load(levels + codes_at(rows, d, inside, row_bytes, BITS))
    if ZERO >= 0:
        column = d // group if GROUPED else d * 0
        of_slot = zero + slot[:, None] * zero_slot
        value -= zero_at(of_slot, 0 * d, column, inside, 0, ZERO, 0)
    each = tl.full((BLOCK_S,), 1.0, tl.float32)
    if GROUPED:
        place = slot[:, None] * scale_slot + d // group
        value *= scale_at(scale, scale_table, scale, unit, place, inside, SCALE, False)
    elif SCALE != "none":
        each = scale_at(scale, scale_table, scale, unit, slot * scale_slot, here, SCALE, False)
    return tl.where(inside, value, 0.0), each


@triton.jit
def attend(
    queries,
    positions,
    keys,
    key_scale,
    key_zero,
    values,
    value_scale,
    value_zero,
    levels,
    scale_table,
    out,
    maxima,
    sums,
    heads,
    rows,
    count,
    slots,
    features,
    query_head,
    word_batch,
    word_head,
    word_slot,
    scale_batch,
    scale_head,
    scale_slot,
    zero_batch,
    zero_head,
    zero_slot,
    row_bytes,
    group,
    unit,
    first,
    step,
    root,
    blocks_each,
    BITS: tl.constexpr,
    LINE: tl.constexpr,
    SCALE: tl.constexpr,
    ZERO: tl.constexpr,
    GROUPED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """out[part, b, r] = the mix of values under shares that are not divided by their `sums` yet."""
    head, part = tl.program_id(0), tl.program_id(2)
    batch, of_batch = head // heads, head % heads
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    known = r < rows
    d = tl.arange(0, D)
    wanted = known[:, None] & (d < features)[None, :]
    place = head.to(tl.int64) * query_head + r[:, None] * features + d[None, :]
    query = tl.load(queries + place, mask=wanted, other=0.0)
    last = tl.load(positions + batch * count + r % count, mask=known, other=0)
    at_words = batch.to(tl.int64) * word_batch + of_batch * word_head
    at_scale = batch.to(tl.int64) * scale_batch + of_batch * scale_head
    at_zero = batch.to(tl.int64) * zero_batch + of_batch * zero_head
    highest = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    mixed = tl.zeros((BLOCK_R, D), tl.float32)
    for block in range(part * blocks_each, tl.minimum((part + 1) * blocks_each, tl.cdiv(slots, BLOCK_S))):
        slot = block * BLOCK_S + tl.arange(0, BLOCK_S)
        here = slot < slots
        far = slot.to(tl.int64)
        number, each = numbers_at(
            keys + at_words,
            levels,
            key_scale + at_scale,
            scale_table,
            key_zero + at_zero,
            far,
            here,
            word_slot,
            scale_slot,
            zero_slot,
            row_bytes,
            group,
            unit,
            first,
            step,
            features,
            BITS,
            LINE,
            SCALE,
            ZERO,
            GROUPED,
            D,
            BLOCK_S,
        )
        scores = tl.dot(query, tl.trans(number.to(query.dtype)), input_precision="ieee")
        scores *= (each * root)[None, :]
        seen = (slot[None, :] <= last[:, None]) & here[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp(scores - base[:, None])
        kept = tl.exp(highest - base)
        total = total * kept + tl.sum(shares, 1)
        number, each = numbers_at(
            values + at_words,
            levels,
            value_scale + at_scale,
            scale_table,
            value_zero + at_zero,
            far,
            here,
            word_slot,
            scale_slot,
            zero_slot,
            row_bytes,
            group,
            unit,
            first,
            step,
            features,
            BITS,
            LINE,
            SCALE,
            ZERO,
            GROUPED,
            D,
            BLOCK_S,
        )
        shares *= each[None, :]
        mixed *= kept[:, None]
        mixed = tl.dot(shares.to(query.dtype), number.to(query.dtype), mixed, input_precision="ieee")
        highest = higher
    row = (part * tl.num_programs(0) + head).to(tl.int64) * rows + r
    tl.store(maxima + row, highest, mask=known)
    tl.store(sums + row, total, mask=known)
    tl.store(out + row[:, None] * features + d[None, :], mixed, mask=wanted)
