# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that reads what is stored of a matrix: codes as bytes or numbers, scales, zero points.

A byte of a packed row holds PER codes of BITS bits, the first in the lowest; other widths lie across bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import activated

_PLANE8 = tl.constexpr("lop3.b32 $0, $1, 0xffffffff, 0x80808080, 0x6a;")
_PLANES4 = tl.constexpr("""{
.reg .b32 t;
shl.b32 t, $2, 4;
lop3.b32 $0, t, 0xf0f0f0f0, 0x80808080, 0x6a;
lop3.b32 $1, $2, 0xf0f0f0f0, 0x80808080, 0x6a;
}""")
_PLANES2 = tl.constexpr("""{
.reg .b32 t<3>;
shl.b32 t0, $4, 6;
shl.b32 t1, $4, 4;
shl.b32 t2, $4, 2;
lop3.b32 $0, t0, 0xc0c0c0c0, 0x80808080, 0x6a;
lop3.b32 $1, t1, 0xc0c0c0c0, 0x80808080, 0x6a;
lop3.b32 $2, t2, 0xc0c0c0c0, 0x80808080, 0x6a;
lop3.b32 $3, $4, 0xc0c0c0c0, 0x80808080, 0x6a;
}""")
_PLANES1 = tl.constexpr("""{
.reg .b32 t<7>;
shl.b32 t0, $8, 7;
shl.b32 t1, $8, 6;
shl.b32 t2, $8, 5;
shl.b32 t3, $8, 4;
shl.b32 t4, $8, 3;
shl.b32 t5, $8, 2;
shl.b32 t6, $8, 1;
lop3.b32 $0, t0, 0x80808080, 0x80808080, 0x6a;
lop3.b32 $1, t1, 0x80808080, 0x80808080, 0x6a;
lop3.b32 $2, t2, 0x80808080, 0x80808080, 0x6a;
lop3.b32 $3, t3, 0x80808080, 0x80808080, 0x6a;
lop3.b32 $4, t4, 0x80808080, 0x80808080, 0x6a;
lop3.b32 $5, t5, 0x80808080, 0x80808080, 0x6a;
lop3.b32 $6, t6, 0x80808080, 0x80808080, 0x6a;
lop3.b32 $7, $8, 0x80808080, 0x80808080, 0x6a;
}""")


@triton.jit
def plain_planes(bytes8, FIRST: tl.constexpr, BITS: tl.constexpr):
    """`signed_planes` from plane FIRST on, without machine text."""
    pattern = bytes8.to(tl.int32) << (8 - BITS * (FIRST + 1))
    level = ((pattern & (256 - (256 >> BITS))) - 128).to(tl.int8)
    if (FIRST + 1) * BITS == 8:
        return (level,)
    else:
        return (level,) + plain_planes(bytes8, FIRST + 1, BITS)  # noqa: RUF005


@triton.jit
def signed_planes(bytes8, BITS: tl.constexpr, PLAIN: tl.constexpr):
    """The codes q of packed bytes as int8 (q - 2^(BITS - 1)) 2^(8 - BITS), a tensor for each plane."""
    if PLAIN:
        return plain_planes(bytes8, 0, BITS)
    elif BITS == 8:
        found = tl.inline_asm_elementwise(_PLANE8, "=r,r", (bytes8,), dtype=tl.int8, is_pure=True, pack=4)
        return (found,)
    elif BITS == 4:
        return tl.inline_asm_elementwise(
            _PLANES4, "=r,=r,r", (bytes8,), dtype=(tl.int8,) * 2, is_pure=True, pack=4
        )
    elif BITS == 2:
        return tl.inline_asm_elementwise(
            _PLANES2, "=r,=r,=r,=r,r", (bytes8,), dtype=(tl.int8,) * 4, is_pure=True, pack=4
        )
    else:
        return tl.inline_asm_elementwise(
            _PLANES1, "=r,=r,=r,=r,=r,=r,=r,=r,r", (bytes8,), dtype=(tl.int8,) * 8, is_pure=True, pack=4
        )


@triton.jit
def in_order(bytes8, FIRST: tl.constexpr, STEP: tl.constexpr, PER: tl.constexpr, BITS: tl.constexpr):
    """Codes FIRST, FIRST + STEP, ... of packed bytes [n, b], less 2^(BITS - 1), as [n, b PER / STEP]."""
    if STEP == PER:
        return (((bytes8 >> (FIRST * BITS)) & ((1 << BITS) - 1)) - (1 << (BITS - 1))).to(tl.float32)
    else:
        even = in_order(bytes8, FIRST, 2 * STEP, PER, BITS)
        odd = in_order(bytes8, FIRST + STEP, 2 * STEP, PER, BITS)
        return tl.interleave(even, odd)


@triton.jit
def codes_at(rows, k, inside, row_bytes, BITS: tl.constexpr):
    """Codes k of packed rows as int32, of any width."""
    bit = k * BITS
    low = tl.load(rows + (bit >> 3), mask=inside, other=0).to(tl.int32)
    if 8 % BITS:
        more = inside & ((bit >> 3) + 1 < row_bytes)
        low |= tl.load(rows + (bit >> 3) + 1, mask=more, other=0).to(tl.int32) << 8
    return (low >> (bit & 7)) & ((1 << BITS) - 1)


@triton.jit
def scale_at(scale, table, factor, unit, place, inside, KIND: tl.constexpr, FACTOR: tl.constexpr):
    """Scales as float32, as `StoredMatrix.scales` has them."""
    found = tl.load(scale + place, mask=inside, other=0)
    if KIND == "table":
        found = tl.load(table + found.to(tl.int32))
    found = found.to(tl.float32)
    if FACTOR:
        found *= tl.load(factor).to(tl.float32)
    return found * unit


@triton.jit
def zero_at(zero, row, column, inside, zero_row, BITS: tl.constexpr, FLAT: tl.constexpr):
    """Zero points as float32: floats (BITS 0), or codes in rows of `zero_row` bits.

    These are packed along columns, or with FLAT along so many rows, as those of an expert are; -1: along all.
    """
    if BITS == 0:
        return tl.load(zero + row * zero_row + column, mask=inside, other=0.0).to(tl.float32)
    else:
        if FLAT > 0:
            bit = row // FLAT * zero_row + row % FLAT * BITS + column * 0
        else:
            bit = row * BITS + column * 0 if FLAT else row * zero_row + column * BITS
        start = (bit & 7).to(tl.int32)
        found = tl.load(zero + (bit >> 3), mask=inside, other=0).to(tl.int32)
        if 8 % BITS:
            more = inside & (start + BITS > 8)
            found |= tl.load(zero + (bit >> 3) + 1, mask=more, other=0).to(tl.int32) << 8
        return ((found >> start) & ((1 << BITS) - 1)).to(tl.float32)


@triton.jit
def scaled(
    value,
    added,
    row,
    column,
    inside,
    fields,
    sizes,
    SCALE: tl.constexpr,
    FACTOR: tl.constexpr,
    ZERO: tl.constexpr,
    ZERO_FLAT: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """(value + added (shift - zero)) scale, for places (row, column) of the scales; all broadcast together.

    `fields` are scale, the table of bytes, factor, zero; `sizes` unit, scales of a row, numbers or bits of a
    row of zeros, shift, and what zeros are multiplied by.
    """
    scale, table, factor, zero = fields
    unit, scale_columns, zero_row, shift, zero_times = sizes
    if SHIFTED:
        moved = shift
        if ZERO >= 0:
            moved -= zero_at(zero, row, column, inside, zero_row, ZERO, ZERO_FLAT) * zero_times
        value += added.to(tl.float32) * moved
    if SCALE != "none":
        value *= scale_at(scale, table, factor, unit, row * scale_columns + column, inside, SCALE, FACTOR)
    return value


@triton.jit
def completed(
    result,
    of_weight,
    half,
    row_sums,
    bias,
    HALF: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """`half` the sums of the weight's rows added, where inputs are half more than codes; bias; activation."""
    if HALF:
        result += half * tl.load(row_sums + of_weight)
    if HAS_BIAS:
        result += tl.load(bias + of_weight).to(tl.float32)
    return activated(result, ACTIVATION)


@triton.jit
def read(place, inside, EVEN: tl.constexpr, ONCE: tl.constexpr):
    """What lies at some places, zero where not inside; ONCE: the caches need not keep it."""
    POLICY: tl.constexpr = "evict_first" if ONCE else ""
    if EVEN:
        return tl.load(place, eviction_policy=POLICY)
    else:
        return tl.load(place, mask=inside, other=0, eviction_policy=POLICY)
