# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that decodes sparse weights for `tiled_triton`: survivors of n:m, and of bit masks."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import alike, loaded
from .tiled_triton import numbers_in_order


@triton.jit
def unpacked(
    words,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    PER: tl.constexpr,
    TEXT: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
):
    """Codes of COUNT words as pairs of numbers, PER of each word, by machine text; a tuple in their order."""
    if COUNT == 1:
        return tl.inline_asm_elementwise(
            TEXT, CONSTRAINTS, (words[FIRST],), dtype=alike(tl.int32, PER), is_pure=True, pack=1
        )
    else:
        HALF: tl.constexpr = COUNT // 2
        return unpacked(words, FIRST, HALF, PER, TEXT, CONSTRAINTS) + unpacked(
            words, FIRST + HALF, HALF, PER, TEXT, CONSTRAINTS
        )


@triton.jit
def two_of_four(stored, FORM: tl.constexpr, row, unit, inside, K, OPERAND: tl.constexpr):
    """2:4 in whole words: units of 32 numbers, whose 16 survivors are words of codes or pairs of numbers.

    FORM: words of a unit, pairs in a word (0: words are pairs), the text and constraints that make them
    numbers, and those that put these in their places.
    """
    TEXT: tl.constexpr = FORM[2]  # text is given on by name: Triton 3.6 takes no part of a constant
    CONSTRAINTS: tl.constexpr = FORM[3]
    codes, index = stored[0], stored[1]
    words = loaded(codes + row * stored[2] + unit * FORM[0], inside, 0, FORM[0], False)
    places = tl.load(index + row * stored[3] + unit, mask=inside, other=0, eviction_policy="evict_first")
    survivors = words if FORM[1] == 0 else unpacked(words, 0, FORM[0], FORM[1], TEXT, CONSTRAINTS)
    given = survivors + (places,)  # noqa: RUF005 (Triton has no stars)
    numbers = tl.inline_asm_elementwise(
        FORM[4], FORM[5], given, dtype=alike(OPERAND, 32), is_pure=True, pack=1
    )
    values = numbers_in_order(numbers, 0, 1, 32)
    return values.reshape(values.shape[0], values.shape[1], values.shape[2], 32)


@triton.jit
def code_at(line, place, inside, BITS: tl.constexpr):
    """Code number `place` of BITS bits (at most 16) in the bit stream that begins at a byte."""
    if 8 % BITS == 0:
        SHIFT: tl.constexpr = 3 if BITS == 1 else 2 if BITS == 2 else 1 if BITS == 4 else 0
        found = tl.load(line + (place >> SHIFT), mask=inside, other=0).to(tl.int32)
        start = (place & (8 // BITS - 1)).to(tl.int32) * BITS
    else:
        bit = place.to(tl.int64) * BITS
        at = line + bit // 8
        start = (bit % 8).to(tl.int32)
        found = tl.load(at, mask=inside, other=0).to(tl.int32)
        found |= tl.load(at + 1, mask=inside & (start + BITS > 8), other=0).to(tl.int32) << 8
        if BITS > 9:
            found |= tl.load(at + 2, mask=inside & (start + BITS > 16), other=0).to(tl.int32) << 16
    return (found >> start) & ((1 << BITS) - 1)


@triton.jit
def number_at(codes, levels, row, code_row, place, inside, BITS: tl.constexpr):
    """Survivors by their places in rows, float32: stored numbers (BITS 0) or levels; 0 outside."""
    line = codes + row * code_row
    if BITS == 0:
        return tl.load(line + place, mask=inside, other=0.0).to(tl.float32)
    else:
        return tl.where(inside, tl.load(levels + code_at(line, place, inside, BITS)), 0.0)


@triton.jit
def set_bits(x):
    """How many bits of 32 are set."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24) & 0xFF


@triton.jit
def group_mask(line, masks, group, known, FORM: tl.constexpr):
    """Which units of a group stay, as bits; FORM as in `groups`."""
    if FORM[0] == "index":
        mask = group * 0
        KEPT: tl.constexpr = FORM[1]
        for kept in tl.static_range(KEPT):
            mask |= 1 << code_at(line, group * KEPT + kept, known, FORM[4])
    elif FORM[0] == "rank":
        mask = tl.load(masks + code_at(line, group, known, FORM[4]))
    else:
        mask = code_at(line, group, known, FORM[2])
    return mask


@triton.jit
def spread_mask(mask, UNIT: tl.constexpr, UNITS: tl.constexpr, VECTOR: tl.constexpr):
    """Bits of units from UNIT on as the bits of their numbers."""
    bits = ((mask >> UNIT) & 1) * (((1 << VECTOR) - 1) << (UNIT * VECTOR))
    if UNIT + 1 == UNITS:
        return bits
    else:
        return bits | spread_mask(mask, UNIT + 1, UNITS, VECTOR)


@triton.jit
def byte_mask(line, masks, unit, K, FORM: tl.constexpr, GROUP: tl.constexpr):
    """The bits of the eight numbers of a unit, whose groups are whole, from group GROUP on."""
    WIDE: tl.constexpr = FORM[2] * FORM[3]
    group = unit * (8 // WIDE) + GROUP
    known = group * WIDE < K
    mask = tl.where(known, group_mask(line, masks, group, known, FORM), 0)
    if FORM[3] > 1:
        mask = spread_mask(mask, 0, FORM[2], FORM[3])
    mask = mask << (GROUP * WIDE)
    if GROUP + 1 == 8 // WIDE:
        return mask
    else:
        return mask | byte_mask(line, masks, unit, K, FORM, GROUP + 1)


@triton.jit
def groups(stored, FORM: tl.constexpr, row, unit, inside, K, OPERAND: tl.constexpr):
    """n:m, units of 8: FORM is (how places are stored, kept units, units of a group, numbers of a unit,
    bits of a place, bits of a code)."""
    KEPT: tl.constexpr = FORM[1]
    UNITS: tl.constexpr = FORM[2]
    VECTOR: tl.constexpr = FORM[3]
    codes, places, masks, levels, code_row, place_row = stored
    if 8 % (UNITS * VECTOR) == 0:  # a unit is whole groups; the last one of a row may be short
        byte = byte_mask(places + row * place_row, masks, unit, K, FORM, 0)
        first = unit * (8 // (UNITS * VECTOR) * KEPT * VECTOR)
        numbers = masked_byte(codes, levels, row, code_row, first, byte, 0, FORM[5])
        values = numbers_in_order(numbers, 0, 1, 8).to(OPERAND)
        return values.reshape(values.shape[0], values.shape[1], values.shape[2], 8)
    else:
        k = unit[:, :, :, None] * 8 + tl.arange(0, 8)[None, None, None, :]
        line = row[:, :, :, None]
        known = (k < K) & (line >= 0)
        group = k // (UNITS * VECTOR)
        own = k % (UNITS * VECTOR) // VECTOR
        mask = group_mask(places + line * place_row, masks, group, known, FORM)
        hit = known & (((mask >> own) & 1) == 1)
        before = set_bits(mask & ((1 << own) - 1))
        place = (group * KEPT + before) * VECTOR + k % VECTOR
        return number_at(codes, levels, line, code_row, place, hit, FORM[5]).to(OPERAND)


@triton.jit
def masked_byte(codes, levels, row, code_row, place, byte, BIT: tl.constexpr, BITS: tl.constexpr):
    """Numbers of the bits from BIT on of a byte of a mask, the first of which is number `place` of its
    row."""
    hit = ((byte >> BIT) & 1) == 1
    number = number_at(codes, levels, row, code_row, place, hit, BITS)
    if BIT == 7:
        return (number,)
    else:
        place = place + hit.to(tl.int32)
        return (number,) + masked_byte(codes, levels, row, code_row, place, byte, BIT + 1, BITS)  # noqa: RUF005


@triton.jit
def masked(stored, FORM: tl.constexpr, row, unit, inside, K, OPERAND: tl.constexpr):
    """Bits of a mask, units of 8: FORM is (bits of a code, units of a stretch). `starts` says how many
    survivors of its row (or of all, where rows have no ends) come before each stretch."""
    codes, mask, starts, levels, code_row, mask_row, start_row = stored
    byte = tl.load(mask + row * mask_row + unit, mask=inside, other=0, eviction_policy="evict_first").to(
        tl.int32
    )
    count = set_bits(byte)
    before = tl.cumsum(count, 2) - count
    stretch = tl.min(unit, 2, keep_dims=True) // FORM[1]
    start = tl.load(
        starts + row * start_row + stretch, mask=(stretch * FORM[1] * 8 < K) & (row >= 0), other=0
    )
    numbers = masked_byte(codes, levels, row, code_row, start + before, byte, 0, FORM[0])
    values = numbers_in_order(numbers, 0, 1, 8).to(OPERAND)
    return values.reshape(values.shape[0], values.shape[1], values.shape[2], 8)
