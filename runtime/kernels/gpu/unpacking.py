"""Machine text that turns packed codes into pairs of 16-bit numbers, a few instructions for each pair.

A *unit* is as many codes as fill whole 32-bit words: 2 P codes, of which code j and code j + P leave together
in one register, the first in the low half (its two *lanes*). P is a power of two. Widths that divide 16 lie
like that in a word; others are brought there, sixteen bits of each half of the unit at a time (a *limb*).
Then every instruction works on both lanes:

- equidistant levels: a code put into the mantissa of a power of two is that power plus the code (the numbers
  0x4300 | q are 128 + q in bfloat16), so one LOP3 makes a pair; codes that lie where a mantissa has room need
  no shift, under another power. What is too much is subtracted from sums of products, or here (`exact`).
- floating point: sign and the other bits are moved where the operand has them, subnormal numbers included;
  the difference of the biases is a factor.
- any table of up to 16 levels: PRMT looks up four bytes at once, by the low three bits of four codes.

Pairs leave lane by lane, or `together` in one register, which a unit of one word can be asked for: its halves
are the lanes then. Pairs of 2-bit codes can be those that are side by side (`neighbours`).

The idea of the first is that of Kim et al., 2211.10017, as Marlin has it; a test holds counts per weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .code_kinds import BFLOAT16, FLOAT16, Codes, Float, Line, Operand, Table
from .ptx import AND_OR, BOTH, NOT_AND_OR, SELECT, Writer, pair

_SPREAD = 0x3120  # bytes 0, 2, 1, 3: the codes of a pair come to one half of the word
_LOW_PAIR, _HIGH_PAIR = 0x6240, 0x7351  # bytes of two planes, as two 16-bit numbers
_NOT_BELOW_32 = 0xFFFFFFE0
_UNIFORM = 4  # bits from which a mantissa has room for one code only, and all have the same offset


@dataclass(frozen=True)
class Unpacking:
    """Machine text from the `words` of a unit to 2 `pairs` numbers: outputs $0, ..., code after code.

    `together`: an output is both numbers of a pair, and there are `pairs`.
    Inputs follow: the words; with own zeros two registers with minus the zero, a rounded number and the rest,
    in both halves; with scales one register. `offsets[j]` is what the numbers of pair j are above their codes
    (`Line`), of the value it stands for zero otherwise. Numbers times `unit` are levels.
    """

    words: int
    pairs: int
    text: str
    constraints: str
    offsets: tuple[float, ...]
    unit: float = 1.0
    together: bool = False

    @property
    def offset(self) -> float | None:
        """The offset of all numbers, or None when pairs differ."""
        return self.offsets[0] if len(set(self.offsets)) == 1 else None

    def constants(self, operand: Operand, zero: float) -> str:
        """Text that makes minus the offsets and `zero` instead of numbers, for the same outputs.

        The one input is a number below 32 that no compiler can know to be: what it knows to be constant, and
        the same for many rows, it copies to where the tensor cores read it before every product.
        """
        write = Writer()
        given = f"${self.constraints.count('=')}"
        results = [
            write.lop3(given, _NOT_BELOW_32, pair(operand, -offset - zero), AND_OR) for offset in self.offsets
        ]
        return write.text(results, self.together)


def layout(bits: int) -> tuple[int, int]:
    """Words and pairs of a unit."""
    return (1, 16 // bits) if 16 % bits == 0 else (3, 8) if bits == 6 else (bits, 16)


@lru_cache(maxsize=512)
def unpacking(
    codes: Codes, operand: Operand, *, exact: bool, scaled: bool = False, together: bool = False
) -> Unpacking:
    """The text for codes of a kind. `exact`: numbers are levels themselves; `scaled`: times a given scale.
    `together`: both lanes of a pair leave in one output.

    Without `exact`, numbers may be above their codes by offsets, or levels but for a factor.
    """
    words, pairs = layout(codes.bits)
    write = Writer()
    outputs = ["=r"] * pairs if together else ["=h"] * (2 * pairs)
    first_input = len(outputs)
    inputs = [f"${first_input + i}" for i in range(words)]
    limbs = inputs if words == 1 else _limbs(write, inputs)
    if isinstance(codes, Line):
        results, offsets = _line(write, codes, limbs, operand, exact)
    elif isinstance(codes, Float):
        results, offsets = _float(write, codes, limbs, operand), (0.0,) * pairs
    else:
        results, offsets = _table(write, codes, limbs, operand), (0.0,) * pairs
    unit = 2.0 ** (operand.bias - codes.bias) if isinstance(codes, Float) else 1.0
    multiply = unit != 1 and (exact or operand is BFLOAT16)  # bfloat16 has no room for 2^-127 in products
    if multiply:
        results = [write.fused(operand, r, pair(operand, unit), pair(operand, -0.0)) for r in results]
    count = words
    if exact and isinstance(codes, Line):
        results = [
            _less(write, operand, r, o + (codes.zero or 0.0)) for r, o in zip(results, offsets, strict=True)
        ]
        if codes.zero is None:
            for place in (f"${first_input + count}", f"${first_input + count + 1}"):
                results = [write.fused(operand, r, pair(operand, 1.0), place) for r in results]
            count += 2
        offsets = (0.0,) * pairs
    if scaled:
        scale = f"${first_input + count}"
        results = [write.fused(operand, r, scale, pair(operand, -0.0)) for r in results]
        count += 1
    constraints = ",".join(outputs + ["r"] * count)
    text = write.text(results, together)
    return Unpacking(words, pairs, text, constraints, offsets, 1.0 if multiply else unit, together)


def neighbours(codes: Codes, operand: Operand) -> Unpacking | None:
    """The text for pairs of codes side by side, or None where there is none.

    The inputs are a word shifted left by one for the first lane and right by one for the second.
    """
    if not isinstance(codes, Line) or codes.bits != 2 or operand is not BFLOAT16:
        return None
    write = Writer()
    results, offsets = [], []
    for byte in range(4):
        both = write("prmt.b32", "$8", "$9", byte * 0x11 | (byte + 4) * 0x1100)
        for place in (1, 5):
            exponent = operand.mantissa - place
            magic = (operand.bias + exponent << operand.mantissa) * BOTH
            results.append(write.lop3(both, (3 << place) * BOTH, magic, AND_OR))
            offsets.append(2.0**exponent)
    constraints = ",".join(["=r"] * 8 + ["r", "r"])
    return Unpacking(1, 8, write.text(results, True), constraints, tuple(offsets), together=True)


def _less(write: Writer, operand: Operand, register: str, value: float) -> str:
    """A pair minus a constant, which may need two steps to be exact."""
    if value == 0:
        return register
    first = value if operand.holds(value) else float(int(value))
    less = write.fused(operand, register, pair(operand, 1.0), pair(operand, -first))
    return less if first == value else _less(write, operand, less, value - first)


def _limbs(write: Writer, inputs: list[str]) -> list[str]:
    """Sixteen bits of the first half of a unit beside the same sixteen of the second."""
    count = len(inputs)

    def half(index: int) -> tuple[str, int]:
        return inputs[index // 2], 2 * (index % 2)

    limbs = []
    for index in range(count):
        (low, at_low), (high, at_high) = half(index), half(index + count)
        selector = at_low | (at_low + 1) << 4 | (4 + at_high) << 8 | (5 + at_high) << 12
        limbs.append(write("prmt.b32", low, high, selector))
    return limbs


def _placed(write: Writer, limbs: list[str], bit: int, width: int, target: int, onto: str | int) -> str:
    """`onto`, with `width` bits from `bit` of the lanes on put at bit `target` of the lanes."""
    limb, start = divmod(bit, 16)
    here = min(width, 16 - start)
    mask = ((1 << here) - 1 << target) * BOTH
    source = write.shifted(limbs[limb], start - target)
    placed = (
        write("and.b32", source, mask)
        if onto == 0 and here == width
        else write.lop3(source, mask, onto, AND_OR)
    )
    if here == width:
        return placed
    return _placed(write, limbs, bit + here, width - here, target + here, placed)


def _line(
    write: Writer, codes: Line, limbs: list[str], operand: Operand, exact: bool
) -> tuple[list[str], tuple[float, ...]]:
    bits, pairs = codes.bits, layout(codes.bits)[1]
    if bits > operand.mantissa:
        return [_signed_byte(write, limbs[0], operand, j) for j in range(pairs)], (-128.0,) * pairs
    lowest = _lowest(bits, operand, exact)
    places = 1 if bits >= _UNIFORM else (operand.mantissa - lowest) // bits
    # What is subtracted from sums lies in registers, so it should repeat step by step of a product.
    run = places if exact else 1 << places.bit_length() - 1
    results, offsets = [], []
    for j in range(pairs):
        place = lowest + j % run * bits
        exponent = operand.mantissa - place
        magic = (operand.bias + exponent << operand.mantissa) * BOTH
        results.append(_placed(write, limbs, j * bits, bits, place, magic))
        offsets.append(2.0**exponent)
    return results, tuple(offsets)


def _lowest(bits: int, operand: Operand, exact: bool) -> int:
    """Where in the mantissa codes begin at the lowest.

    What is above a code is lost again from sums of products, so it should be little. For bfloat16 128 is, for
    float16, which is eight times as exact, 32. Where it is subtracted in the operand's own type, together
    with a zero that may have a half, the lowest bit of bfloat16 stays free.
    """
    if operand is FLOAT16:
        return max(0, min(5, operand.mantissa - bits))
    return 1 if bits < operand.mantissa and (exact or bits < _UNIFORM) else 0


def _signed_byte(write: Writer, word: str, operand: Operand, j: int) -> str:
    """q - 128 for eight bits where a mantissa has seven: (128 + the low seven) - (256 or 128)."""
    word = write.shifted(word, 8 * j)
    power = pair(operand, 128.0)
    low = write.lop3(word, 0x7F * BOTH, power, AND_OR)
    high = write.lop3(word, 0x80 * BOTH, power | 0x8000 * BOTH, NOT_AND_OR)
    return write.fused(operand, low, pair(operand, 1.0), high)


def _float(write: Writer, codes: Float, limbs: list[str], operand: Operand) -> list[str]:
    """Pairs in the operand's own format, but for the bias."""
    magnitude, up = codes.bits - 1, operand.mantissa - codes.mantissa
    results = []
    for j in range(layout(codes.bits)[1]):
        bit = j * codes.bits
        if magnitude + up == 15:  # the sign is where it belongs as well
            results.append(_placed(write, limbs, bit, codes.bits, up, 0))
        else:
            number = _placed(write, limbs, bit, magnitude, up, 0)
            results.append(_placed(write, limbs, bit + magnitude, 1, 15, number))
    return results


def _table(write: Writer, codes: Table, limbs: list[str], operand: Operand) -> list[str]:
    """Pairs looked up byte by byte, four codes at once."""
    levels = (*codes.levels, *[0.0] * (16 - len(codes.levels)))
    patterns = [operand.bits(level) for level in levels]
    planes = [
        [
            sum((p >> 8 * plane & 0xFF) << 8 * i for i, p in enumerate(patterns[at : at + 4]))
            for at in range(0, 16, 4)
        ]
        for plane in range(2)
    ]
    registers = [[write("mov.b32", word) for word in plane] for plane in planes]
    results = [""] * layout(codes.bits)[1]
    for nibbles, places in _nibbles(write, codes.bits, limbs):
        found = _looked_up(write, nibbles, registers, len(codes.levels) > 8)
        for place, register in zip(places, found, strict=True):
            results[place] = register
    return results


def _nibbles(write: Writer, bits: int, limbs: list[str]) -> list[tuple[str, list[int]]]:
    """Words of eight 4-bit codes, four in each lane, and the pairs that these are."""
    if bits == 4:
        return [(limbs[0], [0, 1, 2, 3])]
    if bits == 2:
        even = write("and.b32", limbs[0], 0x33333333)
        odd = write("and.b32", write.shifted(limbs[0], 2), 0x33333333)
        return [(even, [0, 2, 4, 6]), (odd, [1, 3, 5, 7])]
    words = []
    for first in range(0, layout(bits)[1], 4):
        word: str | int = 0
        for j in range(4):
            word = _placed(write, limbs, (first + j) * bits, bits, 4 * j, word)
        words.append((str(word), [first + j for j in range(4)]))
    return words


def _looked_up(write: Writer, nibbles: str, planes: list[list[str]], sixteen: bool) -> list[str]:
    """The four pairs of a word of nibbles."""
    low_bits = write("and.b32", nibbles, 0x77777777) if sixteen else nibbles
    selectors = write("prmt.b32", low_bits, low_bits, _SPREAD)
    upper = ""
    if sixteen:
        flags = write("and.b32", write.shifted(nibbles, 3), 0x11111111)
        upper = write("prmt.b32", flags, flags, _SPREAD)
        all_or_none = write("mov.b32", 0xFF00)
    pairs = []
    for half in range(2):
        selector = write.shifted(selectors, 16 * half)
        found = [write("prmt.b32", plane[0], plane[1], selector) for plane in planes]
        if sixteen:
            mask = write("prmt.b32", all_or_none, all_or_none, write.shifted(upper, 16 * half))
            other = [write("prmt.b32", plane[2], plane[3], selector) for plane in planes]
            found = [write.lop3(mask, b, a, SELECT) for a, b in zip(found, other, strict=True)]
        pairs += [write("prmt.b32", *found, _LOW_PAIR), write("prmt.b32", *found, _HIGH_PAIR)]
    return pairs
