# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that decodes trellises for `tiled_triton`."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import alike
from .tiled_triton import numbers_in_order


@triton.jit
def unit_bits(codes, unit, inside, BYTES: tl.constexpr):
    """The bits of a unit as a number: one word, or three bytes."""
    if BYTES == 4:
        return tl.load(codes + unit, mask=inside, other=0, eviction_policy="evict_first")
    else:
        place = codes + unit * 3
        low = tl.load(place, mask=inside, other=0).to(tl.int32)
        middle = tl.load(place + 1, mask=inside, other=0).to(tl.int32)
        return low | (middle << 8) | (tl.load(place + 2, mask=inside, other=0).to(tl.int32) << 16)


@triton.jit
def reversed_codes(x, WIDTH: tl.constexpr, BITS: tl.constexpr):
    """The codes of BITS bits of a number of WIDTH bits in the opposite order."""
    if WIDTH == BITS:
        return x
    else:
        HALF: tl.constexpr = WIDTH // 2
        # Halves of all pieces change places, from the widest to the narrowest.
        return exchanged(x, WIDTH, HALF, BITS)


@triton.constexpr_function
def low_halves(width, half):
    """A mask of the lower halves of pieces of twice `half` bits, of a number of `width`, as a signed
    number."""
    mask = sum(((1 << half) - 1) << at for at in range(0, width, 2 * half))
    return mask - (1 << 32) if mask >> 31 else mask


@triton.jit
def exchanged(x, WIDTH: tl.constexpr, HALF: tl.constexpr, BITS: tl.constexpr):
    """The halves of all pieces of 2 HALF bits exchanged, and so on in the halves down to codes of BITS."""
    MASK: tl.constexpr = low_halves(WIDTH, HALF)
    turned = ((x >> HALF) & MASK) | ((x & MASK) << HALF)
    if HALF == BITS:
        return turned
    else:
        return exchanged(turned, WIDTH, HALF // 2, BITS)


@triton.jit
def state(newer, older, CODE: tl.constexpr, FORM: tl.constexpr):
    """The window that ends with a code of a unit, where both units are reversed; FORM as in `trellis`."""
    BITS: tl.constexpr = FORM[0]
    WIDTH: tl.constexpr = FORM[2]
    SHIFT: tl.constexpr = WIDTH - BITS * (CODE + 1)
    if SHIFT + FORM[1] <= WIDTH:
        window = newer >> SHIFT
    else:
        window = newer if SHIFT == 0 else (newer >> SHIFT) & ((1 << (WIDTH - SHIFT)) - 1)
        if WIDTH - SHIFT < 32:
            window |= older << (WIDTH - SHIFT)
    return window & ((1 << FORM[1]) - 1)


@triton.jit
def computed(x, CODE: tl.constexpr):
    """The numbers of states, float32: QTIP's 1MAD and 3INST, as integers and sums of float16 they are."""
    if CODE == "1mad":
        word = x * 34038481 + 76625530
        total = (word & 255) + ((word >> 8) & 255) + ((word >> 16) & 255) + ((word >> 24) & 255)
        return (total - 510).to(tl.float32)
    else:
        word = ((x * 89226354 + 64248484) & (-0x70007001)) ^ 0x3B603B60
        low = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        return low + (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def pair(newer, older, table, CODE: tl.constexpr, FORM: tl.constexpr, OPERAND: tl.constexpr):
    """The numbers of codes CODE and CODE + 1 of a unit, as a tuple."""
    KIND: tl.constexpr = FORM[4]
    if KIND == "pairs":  # of a window that is one code longer
        LONGER: tl.constexpr = (FORM[0], FORM[1] + FORM[0], FORM[2])
        word = tl.load(table + state(newer, older, CODE + 1, LONGER))
        first = word.to(tl.int16).to(OPERAND, bitcast=True)
        return (first, (word >> 16).to(tl.int16).to(OPERAND, bitcast=True))
    else:
        first, second = state(newer, older, CODE, FORM), state(newer, older, CODE + 1, FORM)
        if KIND == "table":
            return (tl.load(table + first), tl.load(table + second))
        elif FORM[5] == "":
            return (computed(first, KIND), computed(second, KIND))
        else:
            return tl.inline_asm_elementwise(
                FORM[5], FORM[6], (first, second), dtype=alike(OPERAND, 2), is_pure=True, pack=1
            )


@triton.jit
def pairs(newer, older, table, CODE: tl.constexpr, FORM: tl.constexpr, OPERAND: tl.constexpr):
    """The numbers of a unit from code CODE on."""
    both = pair(newer, older, table, CODE, FORM, OPERAND)
    if FORM[3] == CODE + 2:
        return both
    else:
        return both + pairs(newer, older, table, CODE + 2, FORM, OPERAND)


@triton.jit
def trellis(stored, FORM: tl.constexpr, row, unit, inside, K, OPERAND: tl.constexpr):
    """Numbers of a bitshift trellis whose rows close on themselves: FORM is (bits of a code, bits of a state,
    bits of a unit, codes of a unit, how states become numbers, text and constraints).

    Windows reach back into the unit before, those of a row's first one into its last.
    """
    codes, table, code_row = stored
    BYTES: tl.constexpr = FORM[2] // 8
    line = codes + row * code_row
    bits = unit_bits(line, unit, inside, BYTES)
    before = unit_bits(line, tl.where(unit == 0, K // FORM[3], unit) - 1, inside, BYTES)
    newer = reversed_codes(bits, FORM[2], FORM[0])
    older = reversed_codes(before, FORM[2], FORM[0])
    values = numbers_in_order(pairs(newer, older, table, 0, FORM, OPERAND), 0, 1, FORM[3])
    return values.reshape(values.shape[0], values.shape[1], values.shape[2], FORM[3]).to(OPERAND)
