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
from math import frexp, isfinite

import torch

_AND_OR, _NOT_AND_OR, _SELECT = 0xEA, 0xAE, 0xCA  # of a, b, c: (a & b) | c, (~a & b) | c, a ? b : c
_SPREAD = 0x3120  # bytes 0, 2, 1, 3: the codes of a pair come to one half of the word
_LOW_PAIR, _HIGH_PAIR = 0x6240, 0x7351  # bytes of two planes, as two 16-bit numbers
_BOTH, _NOT_BELOW_32 = 0x00010001, 0xFFFFFFE0
_UNIFORM = 4  # bits from which a mantissa has room for one code only, and all have the same offset


@dataclass(frozen=True)
class Operand:
    """A 16-bit type of the tensor cores."""

    name: str  # in PTX
    dtype: torch.dtype
    mantissa: int
    bias: int

    def bits(self, value: float) -> int:
        """The bit pattern of a number, rounded to the type."""
        return int(torch.tensor(value, dtype=torch.float64).to(self.dtype).view(torch.int16).item()) & 0xFFFF

    def holds(self, value: float) -> bool:
        """Whether a number is one of the type."""
        return torch.tensor(value, dtype=torch.float64).to(self.dtype).double().item() == value


BFLOAT16 = Operand("bf16", torch.bfloat16, 7, 127)
FLOAT16 = Operand("f16", torch.float16, 10, 15)


@dataclass(frozen=True)
class Line:
    """Codes q that stand for q - zero; `zero` None where every group has its own."""

    bits: int
    zero: float | None


@dataclass(frozen=True)
class Float:
    """Codes of sign, exponent and mantissa (from the highest bit), subnormal numbers as usual."""

    bits: int
    mantissa: int
    bias: int


@dataclass(frozen=True)
class Table:
    """Codes that are places in a table of at most 16."""

    bits: int
    levels: tuple[float, ...]


Codes = Line | Float | Table


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
        write = _Writer()
        given = f"${self.constraints.count('=')}"
        results = [
            write.lop3(given, _NOT_BELOW_32, _pair(operand, -offset - zero), _AND_OR)
            for offset in self.offsets
        ]
        return write.text(results, self.together)


def layout(bits: int) -> tuple[int, int]:
    """Words and pairs of a unit."""
    return (1, 16 // bits) if 16 % bits == 0 else (3, 8) if bits == 6 else (bits, 16)


class _Writer:
    """Lines of PTX on registers r0, r1, ...; asked twice for the same, it gives the register it has."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def __call__(self, operation: str, *arguments: str | int) -> str:
        given = ", ".join(a if isinstance(a, str) else f"0x{a:x}" for a in arguments)
        key = f"{operation}|{given}"
        if key not in self.lines:
            self.lines[key] = f"r{len(self.lines)}"
        return self.lines[key]

    def text(self, results: list[str], together: bool) -> str:
        """The whole block, with the results stored to the outputs, lane by lane unless `together`."""
        pairs = len(results)
        body = [
            f"{operation} {register}, {given};"
            for (operation, given), register in ((key.split("|"), r) for key, r in self.lines.items())
        ]
        body += [
            f"mov.b32 {f'${j}' if together else f'{{${j}, ${j + pairs}}}'}, {result};"
            for j, result in enumerate(results)
        ]
        return "{\n.reg .b32 r<" + str(len(self.lines)) + ">;\n" + "\n".join(body) + "\n}"

    def shifted(self, register: str, right: int) -> str:
        """A register shifted right, or left where negative."""
        if right == 0:
            return register
        return self("shr.u32", register, right) if right > 0 else self("shl.b32", register, -right)

    def lop3(self, a: str, b: str | int, c: str | int, table: int) -> str:
        """Any function of three bits."""
        return self("lop3.b32", a, b, c, table)

    def fused(self, operand: Operand, a: str, b: str | int, c: str | int) -> str:
        """a b + c in both lanes, rounded once (an instruction that all of sm_80 and later have)."""
        multiplier, addend = (v if isinstance(v, str) else self("mov.b32", v) for v in (b, c))
        return self(f"fma.rn.{operand.name}x2", a, multiplier, addend)


@lru_cache(maxsize=512)
def unpacking(
    codes: Codes, operand: Operand, *, exact: bool, scaled: bool = False, together: bool = False
) -> Unpacking:
    """The text for codes of a kind. `exact`: numbers are levels themselves; `scaled`: times a given scale.
    `together`: both lanes of a pair leave in one output.

    Without `exact`, numbers may be above their codes by offsets, or levels but for a factor.
    """
    words, pairs = layout(codes.bits)
    write = _Writer()
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
        results = [write.fused(operand, r, _pair(operand, unit), _pair(operand, -0.0)) for r in results]
    count = words
    if exact and isinstance(codes, Line):
        results = [
            _less(write, operand, r, o + (codes.zero or 0.0)) for r, o in zip(results, offsets, strict=True)
        ]
        if codes.zero is None:
            for place in (f"${first_input + count}", f"${first_input + count + 1}"):
                results = [write.fused(operand, r, _pair(operand, 1.0), place) for r in results]
            count += 2
        offsets = (0.0,) * pairs
    if scaled:
        scale = f"${first_input + count}"
        results = [write.fused(operand, r, scale, _pair(operand, -0.0)) for r in results]
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
    write = _Writer()
    results, offsets = [], []
    for byte in range(4):
        both = write("prmt.b32", "$8", "$9", byte * 0x11 | (byte + 4) * 0x1100)
        for place in (1, 5):
            exponent = operand.mantissa - place
            magic = (operand.bias + exponent << operand.mantissa) * _BOTH
            results.append(write.lop3(both, (3 << place) * _BOTH, magic, _AND_OR))
            offsets.append(2.0**exponent)
    constraints = ",".join(["=r"] * 8 + ["r", "r"])
    return Unpacking(1, 8, write.text(results, True), constraints, tuple(offsets), together=True)


def _pair(operand: Operand, value: float) -> int:
    return operand.bits(value) * _BOTH


def _less(write: _Writer, operand: Operand, register: str, value: float) -> str:
    """A pair minus a constant, which may need two steps to be exact."""
    if value == 0:
        return register
    first = value if operand.holds(value) else float(int(value))
    less = write.fused(operand, register, _pair(operand, 1.0), _pair(operand, -first))
    return less if first == value else _less(write, operand, less, value - first)


def _limbs(write: _Writer, inputs: list[str]) -> list[str]:
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


def _placed(write: _Writer, limbs: list[str], bit: int, width: int, target: int, onto: str | int) -> str:
    """`onto`, with `width` bits from `bit` of the lanes on put at bit `target` of the lanes."""
    limb, start = divmod(bit, 16)
    here = min(width, 16 - start)
    mask = ((1 << here) - 1 << target) * _BOTH
    source = write.shifted(limbs[limb], start - target)
    placed = (
        write("and.b32", source, mask)
        if onto == 0 and here == width
        else write.lop3(source, mask, onto, _AND_OR)
    )
    if here == width:
        return placed
    return _placed(write, limbs, bit + here, width - here, target + here, placed)


def _line(
    write: _Writer, codes: Line, limbs: list[str], operand: Operand, exact: bool
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
        magic = (operand.bias + exponent << operand.mantissa) * _BOTH
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


def _signed_byte(write: _Writer, word: str, operand: Operand, j: int) -> str:
    """q - 128 for eight bits where a mantissa has seven: (128 + the low seven) - (256 or 128)."""
    word = write.shifted(word, 8 * j)
    power = _pair(operand, 128.0)
    low = write.lop3(word, 0x7F * _BOTH, power, _AND_OR)
    high = write.lop3(word, 0x80 * _BOTH, power | 0x8000 * _BOTH, _NOT_AND_OR)
    return write.fused(operand, low, _pair(operand, 1.0), high)


def _float(write: _Writer, codes: Float, limbs: list[str], operand: Operand) -> list[str]:
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


def _table(write: _Writer, codes: Table, limbs: list[str], operand: Operand) -> list[str]:
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


def _nibbles(write: _Writer, bits: int, limbs: list[str]) -> list[tuple[str, list[int]]]:
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


def _looked_up(write: _Writer, nibbles: str, planes: list[list[str]], sixteen: bool) -> list[str]:
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
            found = [write.lop3(mask, b, a, _SELECT) for a, b in zip(found, other, strict=True)]
        pairs += [write("prmt.b32", *found, _LOW_PAIR), write("prmt.b32", *found, _HIGH_PAIR)]
    return pairs


def float_format(bits: int, levels: tuple[float, ...]) -> Float | None:
    """The floating-point format whose finite codes have these levels, if there is one."""
    if len(levels) != 1 << bits or not levels[1] > 0 or frexp(levels[1])[0] != 0.5:
        return None
    for mantissa in range(bits - 1):
        found = Float(bits, mantissa, 2 - frexp(levels[1])[1] - mantissa)
        if all(level == _value(found, q) for q, level in enumerate(levels) if isfinite(level)):
            return found
    return None


def _value(codes: Float, code: int) -> float:
    sign = -1.0 if code >> codes.bits - 1 else 1.0
    exponent, fraction = divmod(code & (1 << codes.bits - 1) - 1, 1 << codes.mantissa)
    significand = fraction / (1 << codes.mantissa) + (exponent > 0)
    return sign * significand * 2.0 ** (max(exponent, 1) - codes.bias)
