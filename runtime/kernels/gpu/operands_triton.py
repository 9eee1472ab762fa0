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

from .numbers_triton import alike, in_order, loaded, numbers_of, read_scale, read_zero

HIGH = tl.constexpr(16)  # rows of the first operand that one instruction multiplies


@triton.jit
def across(BATCHES: tl.constexpr, COUNT: tl.constexpr):
    """0, 1, ... along a block, [batch, 1, COUNT].

    Not one range in that shape: Triton 3.6 does not see that its neighbours are neighbours, and so loads
    places one by one, and none ahead.
    """
    return tl.arange(0, BATCHES)[:, None, None] * COUNT + tl.arange(0, COUNT)[None, None, :]


@triton.jit
def row_by_row(BATCHES: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr):
    """Rows [1, ROWS COUNT] and places [BATCHES, ROWS COUNT] of a block, row after row.

    With rows and places as two dimensions versions of Triton differ in which of rows and batches threads
    share: in 3.6 batches, so that each thread had many rows, each with an address of its own. A thread that
    has batches of one row has one address.
    """
    at = tl.arange(0, ROWS * COUNT)[None, :]
    return at // COUNT, tl.arange(0, BATCHES)[:, None] * COUNT + at % COUNT


@triton.constexpr_function
def turns(pairs, side):
    """Pairs of a unit that follow each other in one step of the product, which has two of a thread.

    Where pairs lie in twos (SIDE), both of a step are alike in what numbers are above codes if they are the
    first of two twos: a register for it is copied then before every product. So twos are of every other pair.
    """
    return 2 if side > 1 and pairs >= 2 * side else 1


@triton.constexpr_function
def together(batches, units, block_k):
    """Batches whose words of a row are loaded one after the other: 128 of K, and 32 bytes, which is the least
    that memory gives."""
    return min(batches, max(1, 128 // block_k, 8 // units))


@triton.jit
def word_places(
    words,
    N,
    word_row,
    WORDS: tl.constexpr,
    UNITS: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANES: tl.constexpr,
):
    """Where the units of the first block begin, and which of a row they are: [batch, n unit], of more words
    than one [batch, n, unit]."""
    PARTS: tl.constexpr = 2 if LANES == "halves" else 1
    if WORDS == 1:
        NEAR: tl.constexpr = together(BATCHES, UNITS, BLOCK_K)
        column, part = row_by_row(BATCHES // NEAR, BLOCK_N, NEAR * PARTS * UNITS)
    else:
        column, part = tl.arange(0, BLOCK_N)[None, :, None], across(BATCHES, UNITS)
    column = tl.minimum(tl.program_id(0) * BLOCK_N + column, N - 1).to(tl.int64)
    if LANES == "halves":
        words = words.to(tl.pointer_type(tl.int16))
    return words + (column * word_row * PARTS + part * WORDS), part // PARTS


@triton.jit
def taken_from(
    places,
    inside,
    WORDS: tl.constexpr,
    UNITS: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    LANES: tl.constexpr,
):
    """The words of units [batch, n, unit], as a tuple, or with "halves" of their halves."""
    taken = loaded(places, inside, 0, WORDS, EVEN)
    if WORDS == 1:
        PARTS: tl.constexpr = 2 if LANES == "halves" else 1
        NEAR: tl.constexpr = together(BATCHES, UNITS, BLOCK_K)
        word = taken[0].reshape(BATCHES // NEAR, BLOCK_N, NEAR, PARTS * UNITS).permute(0, 2, 1, 3)
        return (word.reshape(BATCHES, BLOCK_N, PARTS * UNITS),)
    else:
        return taken


@triton.jit
def apart(
    numbers, A: tl.constexpr, B: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr, SIDE: tl.constexpr
):
    """Units of [A, B, K], the first numbers of their pairs before the second ones, in the order of K.

    Units of fewer pairs than lie side by side are so themselves.
    """
    PART: tl.constexpr = min(PAIRS, SIDE)
    MORE: tl.constexpr = SIDE // PART
    TURNS: tl.constexpr = turns(PAIRS, SIDE)
    SHAPE: tl.constexpr = (A, B, K // (8 * PAIRS * MORE), MORE, 4, 2, PAIRS // (PART * TURNS), PART, TURNS)
    return numbers.reshape(SHAPE).permute(0, 1, 2, 6, 8, 4, 3, 7, 5).reshape(A, B, K)


@triton.jit
def beside(
    numbers, A: tl.constexpr, B: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr, SIDE: tl.constexpr
):
    """Units of [A, B, K], pair by pair, in the order of K."""
    TURNS: tl.constexpr = turns(PAIRS, SIDE)
    parts = numbers.reshape(A, B, K // (8 * PAIRS), 4, PAIRS // (SIDE * TURNS), SIDE, TURNS, 2)
    return parts.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(A, B, K)


@triton.jit
def by_units(values, BATCHES: tl.constexpr, BLOCK_N: tl.constexpr, UNITS: tl.constexpr):
    """What units share, [batch, n group], for each of them, [batch, n, unit]."""
    GROUPS: tl.constexpr = values.shape[1] // BLOCK_N
    values = values.reshape(BATCHES, BLOCK_N, GROUPS, 1)
    values = tl.broadcast_to(values, (BATCHES, BLOCK_N, GROUPS, UNITS // GROUPS))
    return values.reshape(BATCHES, BLOCK_N, UNITS)


@triton.jit
def scales_of_units(
    scales,
    table,
    zeros,
    block,
    N,
    K,
    scale_row,
    scale_rows,
    zero_row,
    SCALE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ZERO_BITS: tl.constexpr,
    EVEN: tl.constexpr,
    COUNT: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Scales and zero points of the units of a block, [batch, n, unit]; 0.0 where there are no zero points.

    Where groups are whole in a batch, each is read once, beside its neighbours: several bytes at a time can
    be loaded ahead. What cannot keeps threads in the order in which it was loaded, and then all numbers made
    of it pass through shared memory.
    """
    UNITS: tl.constexpr = BLOCK_K // COUNT
    WHOLE: tl.constexpr = BLOCK_K % COLUMNS == 0
    READ: tl.constexpr = BLOCK_K // COLUMNS if WHOLE else UNITS  # of a batch and column
    column, place = row_by_row(BATCHES, BLOCK_N, READ)
    column = tl.minimum(tl.program_id(0) * BLOCK_N + column, N - 1).to(tl.int64) // scale_rows
    place += block * (BATCHES * READ)
    group = place if WHOLE else place * COUNT // COLUMNS
    inside = group * COLUMNS < K
    scale = read_scale(scales, table, column * scale_row + group, inside, SCALE, EVEN)
    zero = 0.0
    if ZERO_BITS >= 0:
        zero = by_units(read_zero(zeros, column, group, zero_row, inside, ZERO_BITS), BATCHES, BLOCK_N, UNITS)
    return by_units(scale, BATCHES, BLOCK_N, UNITS), zero


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
    SIDE: tl.constexpr,
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
        values = beside(values, BATCHES, BLOCK_N, BLOCK_K, PAIRS, SIDE)
    else:
        values = apart(values, BATCHES, BLOCK_N, BLOCK_K, PAIRS, SIDE)
    return values


@triton.jit
def inputs_as_operand(
    inputs,
    PAIRS: tl.constexpr,
    OPERAND: tl.constexpr,
    LANES: tl.constexpr,
    SIDE: tl.constexpr,
    BATCHES: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Inputs [batch, x, k] in the order of the codes, [batch, k, m]."""
    if LANES == "neighbours":
        inputs = beside(inputs, BATCHES, BLOCK_X, BLOCK_K, PAIRS, SIDE).to(OPERAND)
    else:
        inputs = apart(inputs, BATCHES, BLOCK_X, BLOCK_K, PAIRS, SIDE).to(OPERAND)
    return tl.broadcast_to(inputs, (BATCHES, BLOCK_M, BLOCK_K)).permute(0, 2, 1)


@triton.jit
def ones_as_operand(ROWS: tl.constexpr, COLUMNS: tl.constexpr, OPERAND: tl.constexpr, SIDE: tl.constexpr):
    """Ones [ROWS, COLUMNS] that lie as joined tensors do, so that they multiply the same inputs."""
    if SIDE == 1:
        return tl.full((ROWS, COLUMNS), 1.0, OPERAND)
    else:
        half = tl.full((ROWS, COLUMNS // 2), 1.0, OPERAND)
        return tl.join(half, half).reshape(ROWS, COLUMNS)


@triton.jit
def constants(
    known,
    TEXT: tl.constexpr,
    PAIRS: tl.constexpr,
    OPERAND: tl.constexpr,
    LANES: tl.constexpr,
    SIDE: tl.constexpr,
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
        return apart(numbers, BATCHES, HIGH, BLOCK_K, PAIRS, SIDE)


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
