# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that decodes codebooks for `tiled_triton`, and the product of one row with their tables."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import alike
from .tiled_triton import numbers_in_order


@triton.jit
def code_words(line, first, code_row, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """The words (or bytes) of a unit, the first of them at `first` of a row, as a tuple; 0 past its end."""
    at = first + FIRST
    word = tl.load(line + at, mask=at < code_row, other=0, eviction_policy="evict_first").to(tl.int32)
    if FIRST + 1 == COUNT:
        return (word,)
    else:
        return (word,) + code_words(line, first, code_row, FIRST + 1, COUNT)  # noqa: RUF005 (Triton has no stars)


@triton.jit
def code_of(unit, BIT: tl.constexpr, BITS: tl.constexpr, WORD: tl.constexpr):
    """The code at a bit of a unit's words of WORD bits."""
    AT: tl.constexpr = BIT // WORD
    START: tl.constexpr = BIT % WORD
    if START + BITS <= WORD:
        code = unit[AT] >> START
    else:
        code = (unit[AT] >> START) & ((1 << (WORD - START)) - 1)
        code |= unit[AT + 1] << (WORD - START)
        if START + BITS > 2 * WORD:
            code |= unit[AT + 2] << (2 * WORD - START)
    return code & ((1 << BITS) - 1)


@triton.jit
def entry(table, place, PART: tl.constexpr, FORM: tl.constexpr, OPERAND: tl.constexpr):
    """Numbers from PART on of the vectors at a place of the table, a tuple of FORM[1] of them.

    Numbers are float32, or packed as operands into integers of up to 64 bits.
    """
    PACKED: tl.constexpr = FORM[2]
    if PACKED == 0 or PACKED == 1:
        found = tl.load(table + place + PART)
        return (found,)
    elif PACKED == 2:
        word = tl.load(table + place // 2 + PART // 2)
        return halves(word, OPERAND)
    else:
        word = tl.load(table + place // 4 + PART // 4)
        return halves(word.to(tl.int32), OPERAND) + halves((word >> 32).to(tl.int32), OPERAND)


@triton.jit
def halves(word, OPERAND: tl.constexpr):
    """The two operands in a word."""
    low = word.to(tl.int16).to(OPERAND, bitcast=True)
    return (low, (word >> 16).to(tl.int16).to(OPERAND, bitcast=True))


@triton.jit
def joined(table, place, PART: tl.constexpr, FORM: tl.constexpr, OPERAND: tl.constexpr):
    """All numbers of the vectors at a place, from PART on."""
    some = entry(table, place, PART, FORM, OPERAND)
    STEP: tl.constexpr = FORM[2] if FORM[2] > 0 else 1
    if FORM[1] <= PART + STEP:
        return some
    else:
        return some + joined(table, place, PART + STEP, FORM, OPERAND)


@triton.jit
def summed(first, second, PLACE: tl.constexpr, COUNT: tl.constexpr):
    """The sums of two tuples, in float32."""
    both = first[PLACE].to(tl.float32) + second[PLACE].to(tl.float32)
    if PLACE + 1 == COUNT:
        return (both,)
    else:
        return (both,) + summed(first, second, PLACE + 1, COUNT)  # noqa: RUF005 (Triton has no stars)


@triton.jit
def vector(
    unit, table, base, VECTOR: tl.constexpr, BOOK: tl.constexpr, FORM: tl.constexpr, OPERAND: tl.constexpr
):
    """Vector VECTOR of a unit from its codebooks from BOOK on: a tuple of its numbers."""
    SIZE: tl.constexpr = FORM[1]
    BOOKS: tl.constexpr = FORM[3]
    BITS: tl.constexpr = FORM[4]
    code = code_of(unit, (VECTOR * BOOKS + BOOK) * BITS, BITS, FORM[8])
    numbers = joined(table, base + ((BOOK << BITS) + code) * SIZE, 0, FORM, OPERAND)
    if BOOK + 1 == BOOKS:
        return numbers
    else:
        rest = vector(unit, table, base, VECTOR, BOOK + 1, FORM, OPERAND)
        if FORM[5]:  # each has its own part of the vector
            return numbers + rest
        else:
            return summed(numbers, rest, 0, SIZE)


@triton.jit
def every(unit, table, base, VECTOR: tl.constexpr, FORM: tl.constexpr, OPERAND: tl.constexpr):
    """The numbers of all vectors of a unit from VECTOR on."""
    numbers = vector(unit, table, base, VECTOR, 0, FORM, OPERAND)
    if FORM[0] == VECTOR + 1:
        return numbers
    else:
        return numbers + every(unit, table, base, VECTOR + 1, FORM, OPERAND)


@triton.jit
def vectors(stored, FORM: tl.constexpr, row, unit, inside, K, OPERAND: tl.constexpr):
    """Vectors from tables: FORM is (vectors of a unit, numbers of a table's vector, numbers packed
    together (0: as float32), codebooks, bits of a code, whether each has its own part, words of a unit,
    numbers of a unit, bits of a word)."""
    codes, table, code_row, rows_of_book, book_row = stored
    taken = code_words(codes + row * code_row, unit * FORM[6], code_row, 0, FORM[6])
    base = (row // rows_of_book * book_row).to(tl.int32)
    numbers = every(taken, table, base, 0, FORM, OPERAND)
    values = numbers_in_order(numbers, 0, 1, FORM[7])
    return values.reshape(values.shape[0], values.shape[1], values.shape[2], FORM[7]).to(OPERAND)


@triton.jit
def parity(x):
    """Whether an odd number of eight bits is set: 0 or 1."""
    x ^= x >> 4
    x ^= x >> 2
    return (x ^ (x >> 1)) & 1


@triton.jit
def signed(sizes, signs, move, PLACE: tl.constexpr):
    """Numbers of an E8P vector from PLACE on, in quarters: 2 plus the bits of its size, signed, moved by
    one."""
    NIBBLE: tl.constexpr = PLACE // 2 + PLACE % 2 * 4
    size = ((sizes >> (4 * NIBBLE)) & 12) + 2
    number = tl.where(((signs >> PLACE) & 1) == 1, -size, size) + move
    if PLACE == 7:
        return (number.to(tl.float32),)
    else:
        return (number.to(tl.float32),) + signed(sizes, signs, move, PLACE + 1)  # noqa: RUF005


@triton.jit
def e8p_of(code, table, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr, OPERAND: tl.constexpr):
    """The eight numbers of a code, in quarters, as a tuple."""
    sizes = tl.load(table + (code >> 8))
    if TEXT == "":
        negative = (code >> 1) & 127
        signs = negative | ((parity(negative) ^ (sizes & 1)) << 7)
        return signed(sizes, signs, 1 - 2 * (code & 1), 0)
    else:
        return tl.inline_asm_elementwise(
            TEXT, CONSTRAINTS, (sizes, code), dtype=alike(OPERAND, 8), is_pure=True, pack=1
        )


@triton.jit
def weighed(first, second, RATIO: tl.constexpr, PLACE: tl.constexpr):
    """first + RATIO second, number by number."""
    number = first[PLACE].to(tl.float32) + second[PLACE].to(tl.float32) * RATIO
    if PLACE == 7:
        return (number,)
    else:
        return (number,) + weighed(first, second, RATIO, PLACE + 1)  # noqa: RUF005 (Triton has no stars)


@triton.jit
def e8p_vectors(taken, table, VECTOR: tl.constexpr, FORM: tl.constexpr, OPERAND: tl.constexpr):
    """The numbers of the vectors of a unit from VECTOR on, in quarters."""
    TEXT: tl.constexpr = FORM[2]  # text is given on by name: Triton 3.6 takes no part of a constant
    CONSTRAINTS: tl.constexpr = FORM[3]
    code = code_of(taken, VECTOR * FORM[1] * 16, 16, FORM[5])
    numbers = e8p_of(code, table, TEXT, CONSTRAINTS, OPERAND)
    if FORM[1] == 2:
        code = code_of(taken, VECTOR * FORM[1] * 16 + 16, 16, FORM[5])
        numbers = weighed(numbers, e8p_of(code, table, TEXT, CONSTRAINTS, OPERAND), FORM[4], 0)
    if FORM[0] == VECTOR + 1:
        return numbers
    else:
        return numbers + e8p_vectors(taken, table, VECTOR + 1, FORM, OPERAND)


@triton.jit
def e8p(stored, FORM: tl.constexpr, row, unit, inside, K, OPERAND: tl.constexpr):
    """Vectors of E8P in quarters of its factor: FORM is (vectors of a unit, codebooks, text and
    constraints, the second codebook's factor in units of the first one's, bits of a word, words of a
    unit)."""
    codes, table, code_row = stored
    taken = code_words(codes + row * code_row, unit * FORM[6], code_row, 0, FORM[6])
    values = numbers_in_order(e8p_vectors(taken, table, 0, FORM, OPERAND), 0, 1, 8 * FORM[0])
    return values.reshape(values.shape[0], values.shape[1], values.shape[2], 8 * FORM[0]).to(OPERAND)


@triton.jit
def gathered(
    x,
    codes,
    points,
    scale,
    scale_table,
    bias,
    out,
    multiplier,
    N,
    K,
    vectors_in_row,
    code_row,
    part_blocks,
    SHARE: tl.constexpr,
    SIZE: tl.constexpr,
    BOOKS: tl.constexpr,
    PRODUCT: tl.constexpr,
    ENTRIES: tl.constexpr,
    WIDE: tl.constexpr,
    TOGETHER: tl.constexpr,
    FLOAT32: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[part, n] for one row of x: every product of a part of x with a vector of a table once, then a
    number for each code instead of a vector of them.

    `points` is [BOOKS, WIDE, ENTRIES]: the vectors as columns, above what is left of them when they are
    rounded to the type of x (the tensor cores multiply x with both), above zeros. Codes are bytes, BOOKS of
    them for each vector, or a number of all of them where they lie TOGETHER.
    """
    OPERAND: tl.constexpr = tl.float32 if FLOAT32 else x.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(columns, N - 1).to(tl.int64)
    entries = tl.arange(0, ENTRIES)
    wide = tl.arange(0, WIDE)
    part = tl.program_id(1)
    total = tl.zeros((BLOCK_N,), tl.float32)
    EACH: tl.constexpr = SIZE * BOOKS if PRODUCT else SIZE
    last = tl.minimum((part + 1) * part_blocks, tl.cdiv(vectors_in_row, BLOCK_V))
    for block in tl.range(part * part_blocks, last, num_stages=STAGES):
        at = tl.arange(0, BLOCK_V)
        v = block * BLOCK_V + at
        if TOGETHER:
            place = codes + row[None, :] * code_row + v[:, None]
            taken = tl.load(place, mask=(v < vectors_in_row)[:, None], other=0).to(tl.int32)
        for book in tl.static_range(BOOKS):
            vectors = tl.load(points + (book * WIDE + wide)[:, None] * ENTRIES + entries[None, :]).to(OPERAND)
            k = v[:, None] * EACH + (book * SIZE if PRODUCT else 0) + (wide % SIZE)[None, :]
            given = tl.load(x + k, mask=(k < K) & (wide < 2 * SIZE)[None, :], other=0.0).to(OPERAND)
            table = tl.dot(given, vectors, input_precision="ieee")
            if TOGETHER:
                code = (taken >> (8 * book)) & (ENTRIES - 1)
            else:
                place = codes + row[None, :] * code_row + (v * BOOKS + book)[:, None]
                code = tl.load(place, mask=(v < vectors_in_row)[:, None], other=0).to(tl.int32)
            code += (at * ENTRIES)[:, None]
            found = tl.gather(table.reshape(BLOCK_V * ENTRIES), code.reshape(BLOCK_V * BLOCK_N), 0)
            total += tl.sum(found.reshape(BLOCK_V, BLOCK_N), 0)
    total *= multiplier
    if SHARE[0] == "row":
        total *= tl.load(scale + row // SHARE[2]).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + row).to(tl.float32)
    tl.store(out + part * N + columns, total.to(out.dtype.element_ty), mask=columns < N)
