# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that brings a block of K to the tensor cores, codes as first operand and inputs as second.

LANES says how the two lanes of a pair of codes come to one register (`unpacking`), and so in which order a
block of K is multiplied. "words": they leave machine text one by one, and the compiler puts them together,
with a copy here and there. "halves": a half of a word is loaded as a number of 16 bits for each lane, and
pairs leave whole; units must be words. "neighbours": lanes have the codes that are side by side, so that
inputs need not be turned; codes have two bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import alike, in_order, loaded, numbers_of
from .sides_triton import SIDE

HIGH = tl.constexpr(16)  # rows of the first operand that one instruction multiplies


@triton.jit
def across(BATCHES: tl.constexpr, COUNT: tl.constexpr):
    """0, 1, ... along a block, [batch, 1, COUNT].

    Not one range in that shape: Triton 3.6 does not see that its neighbours are neighbours, and so loads
    places one by one, and none ahead.
    """
    return tl.arange(0, BATCHES)[:, None, None] * COUNT + tl.arange(0, COUNT)[None, None, :]


@triton.jit
def word_places(
    words, rows, WORDS: tl.constexpr, UNITS: tl.constexpr, BATCHES: tl.constexpr, LANES: tl.constexpr
):
    """Where the units of the first block begin [batch, n, unit], `rows` [n] words after the first of them."""
    if LANES == "halves":
        halves = 2 * rows[None, :, None] + across(BATCHES, 2 * UNITS)
        return words.to(tl.pointer_type(tl.int16)) + halves
    else:
        return words + (rows[None, :, None] + across(BATCHES, UNITS) * WORDS)


@triton.jit
def taken_from(places, unit, count, WORDS: tl.constexpr, EVEN: tl.constexpr, LANES: tl.constexpr):
    """The words of units `unit` [batch, 1, unit] of `count`, as a tuple."""
    if LANES == "halves":
        BATCHES: tl.constexpr = unit.shape[0]
        UNITS: tl.constexpr = unit.shape[2]
        inside = tl.broadcast_to((unit < count)[:, :, :, None], (BATCHES, 1, UNITS, 2))
        return loaded(places, inside.reshape(BATCHES, 1, 2 * UNITS), 0, 1, EVEN)
    else:
        return loaded(places, unit < count, 0, WORDS, EVEN)


@triton.jit
def apart(numbers, A: tl.constexpr, B: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    """Units of [A, B, K], the first numbers of their pairs before the second ones, in the order of K."""
    parts = numbers.reshape(A, B, K // (8 * PAIRS), 4, 2, PAIRS // SIDE, SIDE).permute(0, 1, 2, 5, 3, 6, 4)
    return parts.reshape(A, B, K)


@triton.jit
def beside(numbers, A: tl.constexpr, B: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr):
    """Units of [A, B, K], pair by pair, in the order of K."""
    parts = numbers.reshape(A, B, K // (8 * PAIRS), 4, PAIRS // SIDE, SIDE, 2).permute(0, 1, 2, 4, 3, 5, 6)
    return parts.reshape(A, B, K)


@triton.jit
def codes_as_operand(
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
    LANES: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The numbers of a block, [batch, n, k]."""
    UNITS: tl.constexpr = BLOCK_K // (2 * PAIRS)
    if PLAIN and LANES == "halves":
        low, high = tl.split(words[0].reshape(BATCHES, BLOCK_N, UNITS, 2).to(tl.int32))
        words = (low & 0xFFFF | high << 16,)
    if PLAIN or LANES == "words":
        values = numbers_of(
            words, levels, zero, scale, BITS, PAIRS, TEXT, CONSTRAINTS, OPERAND, OWN_ZERO, SCALED, PLAIN
        )
    else:
        if LANES == "neighbours":
            second = tl.arange(0, 2)[None, None, None, :] == 1
            word = words[0][:, :, :, None]
            lanes = tl.where(second, word >> 1, word << 1).reshape(BATCHES, BLOCK_N, 2 * UNITS)
        else:
            lanes = words[0]
        values = tl.inline_asm_elementwise(
            TEXT, CONSTRAINTS, (lanes,), dtype=alike(OPERAND, PAIRS), is_pure=True, pack=2
        )
        values = in_order(values, 0, 1, PAIRS)
    if PLAIN and LANES == "neighbours":
        values = beside(values, BATCHES, BLOCK_N, BLOCK_K, PAIRS)
    else:
        values = apart(values, BATCHES, BLOCK_N, BLOCK_K, PAIRS)
    return values


@triton.jit
def inputs_as_operand(
    inputs,
    PAIRS: tl.constexpr,
    OPERAND: tl.constexpr,
    LANES: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Inputs [batch, x, k] in the order of the codes, [batch, k, m]."""
    if LANES == "neighbours":
        inputs = beside(inputs, BATCHES, BLOCK_X, BLOCK_K, PAIRS).to(OPERAND)
    else:
        inputs = apart(inputs, BATCHES, BLOCK_X, BLOCK_K, PAIRS).to(OPERAND)
    return tl.broadcast_to(inputs, (BATCHES, BLOCK_M, BLOCK_K)).permute(0, 2, 1)


@triton.jit
def constants(
    known,
    TEXT: tl.constexpr,
    PAIRS: tl.constexpr,
    OPERAND: tl.constexpr,
    LANES: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What TEXT makes for each code of a block, [batch, HIGH, k], alike for all rows; 0.0 for no text.

    Text reads the number of the row, which is given with what only we know of `known`: it is not negative.
    """
    if TEXT == "":
        return 0.0
    else:
        UNITS: tl.constexpr = BLOCK_K // (2 * PAIRS)
        row = (tl.arange(0, HIGH) + tl.minimum(known, 0))[None, :, None]
        if LANES == "words":
            numbers = tl.inline_asm_elementwise(
                TEXT,
                "=h," * (2 * PAIRS) + "r",
                (tl.broadcast_to(row, (BATCHES, HIGH, UNITS)),),
                dtype=alike(OPERAND, 2 * PAIRS),
                is_pure=True,
                pack=1,
            )
            numbers = in_order(numbers, 0, 1, 2 * PAIRS)
        else:
            numbers = tl.inline_asm_elementwise(
                TEXT,
                "=r," * PAIRS + "r,r",
                (tl.broadcast_to(row, (BATCHES, HIGH, 2 * UNITS)),),
                dtype=alike(OPERAND, PAIRS),
                is_pure=True,
                pack=2,
            )
            numbers = in_order(numbers, 0, 1, PAIRS)
        return apart(numbers, BATCHES, HIGH, BLOCK_K, PAIRS)


@triton.jit
def spread(sums, BLOCK_N: tl.constexpr):
    """Sums that all columns share, [batch, HIGH, m], for so many columns: registers are named twice."""
    BATCHES: tl.constexpr = sums.shape[0]
    BLOCK_M: tl.constexpr = sums.shape[2]
    shared = tl.broadcast_to(sums[:, None, :, :], (BATCHES, BLOCK_N // HIGH, HIGH, BLOCK_M))
    return shared.reshape(BATCHES, BLOCK_N, BLOCK_M)


@triton.jit
def lost(
    inputs,
    base,
    column_less,
    BASED: tl.constexpr,
    LESS: tl.constexpr,
    OWN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Minus what numbers are above levels, times inputs [batch, k, m]: where sums of products begin.

    `base` [batch, HIGH, k] has it with its sign where BASED, LESS is the same for all numbers, `column_less`
    for those of a column where OWN (and has LESS in it).
    """
    BATCHES: tl.constexpr = inputs.shape[0]
    BLOCK_M: tl.constexpr = inputs.shape[2]
    if LESS != 0 or OWN:
        half = tl.full((BATCHES, HIGH, inputs.shape[1] // 2), 1.0, inputs.dtype)
        ones = tl.join(half, half).reshape(BATCHES, HIGH, inputs.shape[1])  # laid out as other operands are
        sums = tl.dot(ones, inputs, input_precision="ieee")
        start = -column_less * spread(sums, BLOCK_N) if OWN else spread(-LESS * sums, BLOCK_N)
        if BASED:
            start += spread(tl.dot(base, inputs, input_precision="ieee"), BLOCK_N)
    elif BASED:
        start = spread(tl.dot(base, inputs, input_precision="ieee"), BLOCK_N)
    else:
        start = tl.zeros((BATCHES, BLOCK_N, BLOCK_M), tl.float32)
    return start
