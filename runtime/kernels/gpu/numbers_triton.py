# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that reads stored matrices: codes as numbers for the tensor cores, scales and zero points.

Constants are named in capitals: BITS of a code; WORDS and PAIRS of a unit of 2 PAIRS codes, and the TEXT and
CONSTRAINTS of its machine text (`unpacking`). The interpreter knows no machine text, and multiplies the bit
patterns of bfloat16: with PLAIN the same numbers come from shifts and a table, in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def alike(operand, count):
    """`count` times a type."""
    return (operand,) * count


@triton.jit
def loaded(place, inside, FIRST: tl.constexpr, WORDS: tl.constexpr, EVEN: tl.constexpr):
    """Words FIRST, ... of the units at `place` (or the bytes of units of less), as a tuple."""
    if EVEN:
        word = tl.load(place + FIRST, eviction_policy="evict_first")
    else:
        word = tl.load(place + FIRST, mask=inside, other=0, eviction_policy="evict_first")
    if FIRST + 1 == WORDS:
        return (word,)
    else:
        return (word,) + loaded(place, inside, FIRST + 1, WORDS, EVEN)  # noqa: RUF005 (Triton has no stars)


@triton.jit
def in_order(numbers, FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr):
    """Tensors FIRST, FIRST + STEP, ... of COUNT along new last dimensions of two, in order."""
    if STEP == COUNT:
        return numbers[FIRST]
    else:
        even = in_order(numbers, FIRST, 2 * STEP, COUNT)
        odd = in_order(numbers, FIRST + STEP, 2 * STEP, COUNT)
        return tl.join(even, odd)


@triton.jit
def plain(
    words,
    levels,
    zero,
    scale,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    OWN_ZERO: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Codes FIRST, FIRST + STEP, ... of units as `in_order`, as the numbers that `levels` has for them.

    With OWN_ZERO less the zero point of their unit, with SCALED times its scale.
    """
    if STEP == COUNT:
        word: tl.constexpr = FIRST * BITS // 32
        start: tl.constexpr = FIRST * BITS % 32
        codes = words[word].to(tl.uint32, bitcast=True) >> start
        if start + BITS > 32:
            codes |= words[word + 1].to(tl.uint32, bitcast=True) << (32 - start)
        values = tl.load(levels + (codes & ((1 << BITS) - 1)).to(tl.int32))
        values = values - zero if OWN_ZERO else values
        return values * scale if SCALED else values
    else:
        even = plain(words, levels, zero, scale, FIRST, 2 * STEP, COUNT, BITS, OWN_ZERO, SCALED)
        odd = plain(words, levels, zero, scale, FIRST + STEP, 2 * STEP, COUNT, BITS, OWN_ZERO, SCALED)
        return tl.join(even, odd)


@triton.jit
def numbers_of(
    words,
    levels,
    zero,
    scale,
    BITS: tl.constexpr,
    PAIRS: tl.constexpr,
    TEXT: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    OPERAND: tl.constexpr,
    OWN_ZERO: tl.constexpr,
    SCALED: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """The numbers of units as `in_order`: by machine text, or with PLAIN by `plain`."""
    if PLAIN:
        return plain(words, levels, zero, scale, 0, 1, 2 * PAIRS, BITS, OWN_ZERO, SCALED)
    else:
        if OWN_ZERO:
            near = zero.to(OPERAND).to(tl.float32)
            words = words + (both_halves(-near, OPERAND), both_halves(near - zero, OPERAND))  # noqa: RUF005
        if SCALED:
            words = words + (both_halves(scale, OPERAND),)  # noqa: RUF005
        values = tl.inline_asm_elementwise(
            TEXT, CONSTRAINTS, words, dtype=alike(OPERAND, 2 * PAIRS), is_pure=True, pack=1
        )
        return in_order(values, 0, 1, 2 * PAIRS)


@triton.jit
def read_scale(scales, table, place, inside, KIND: tl.constexpr, EVEN: tl.constexpr):
    """Scales as float32; KIND: floats, bytes of an exponent, bytes of e4m3, or bytes and a table of them."""
    found = tl.load(scales + place) if EVEN else tl.load(scales + place, mask=inside, other=0)
    if KIND == "float":
        return found.to(tl.float32)
    elif KIND == "exponent":
        bits = found.to(tl.int32)
        return tl.where(bits == 0, 1 << 22, bits << 23).to(tl.float32, bitcast=True)
    elif KIND == "e4m3":
        bits = found.to(tl.int32)
        number = ((bits & 0x7F) << 20) | ((bits & 0x80) << 24)
        return number.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    else:
        return tl.load(table + found.to(tl.int32))


@triton.jit
def read_zero(zeros, row, column, zero_row, inside, BITS: tl.constexpr):
    """Zero points as float32: floats (BITS 0; `zero_row` in a row), or codes in rows of so many bits."""
    if BITS == 0:
        return tl.load(zeros + row * zero_row + column, mask=inside, other=0.0).to(tl.float32)
    else:
        bit = row * zero_row + column * BITS
        start = (bit % 8).to(tl.int32)
        low = tl.load(zeros + bit // 8, mask=inside, other=0).to(tl.int32)
        high = tl.load(zeros + bit // 8 + 1, mask=inside & (start + BITS > 8), other=0).to(tl.int32)
        return (((high << 8 | low) >> start) & ((1 << BITS) - 1)).to(tl.float32)


@triton.jit
def both_halves(values, OPERAND: tl.constexpr):
    """Numbers as an operand's bits, twice in a register."""
    bits = values.to(OPERAND).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits | (bits << 16)


@triton.jit
def logistic(x):
    """1 / (1 + exp(-x)), which is 0 before the exponential overflows."""
    return 1.0 / (1.0 + tl.exp(-tl.maximum(x, -80.0)))


@triton.jit
def activated(x, NAME: tl.constexpr):
    """The activation of that name in float32; none for an empty one."""
    if NAME == "relu":
        return tl.maximum(x, 0.0)
    elif NAME == "silu":
        return x * logistic(x)
    elif NAME == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        return x * logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        return x


@triton.jit
def result_of(
    total,
    column,
    row_scale,
    bias,
    factor,
    multiplier,
    BY_ROW: tl.constexpr,
    FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """What is stored of sums [n, m]: times what they share, plus the bias [n], through the activation."""
    total *= multiplier
    if BY_ROW:
        total *= row_scale[:, None]
    if FACTOR:
        total *= tl.load(factor).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + column).to(tl.float32)[:, None]
    return activated(total, ACTIVATION)
