"""Machine text for the computed codes of trellises: two states become a pair of numbers.

1MAD adds up four bytes with DP4A, onto the bits of 2^23: read as a float that is 2^23 plus the sum. 3INST
adds two halves that are made of scrambled bits (QTIP, 2406.11235, algorithms 1 and 2).
"""

from __future__ import annotations

from functools import lru_cache

from .code_kinds import FLOAT16, Operand

_TWO_23 = 0x4B000000
_LESS = "0fCB0001FE"  # -(2^23 + 510)


@lru_cache(maxsize=4)
def trellis_text(code: str, operand: Operand) -> tuple[str, str]:
    """Text and constraints: numbers $0 and $1 of the states $2 and $3."""
    lines = _one_mad(operand) if code == "1mad" else _three_inst(operand)
    text = "{\n.reg .b32 a, b;\n.reg .f32 x, y, z;\n.reg .b16 p, q;\n" + "\n".join(lines) + "\n}"
    return text, "=h,=h,r,r"


def _one_mad(operand: Operand) -> list[str]:
    lines = []
    for state, word, number in (("$2", "a", "x"), ("$3", "b", "y")):
        lines += [
            f"mad.lo.u32 {word}, {state}, 34038481, 76625530;",
            f"dp4a.u32.u32 {word}, {word}, 0x01010101, {_TWO_23};",
            f"mov.b32 {number}, {word};",
            f"add.f32 {number}, {number}, {_LESS};",
        ]
    return [*lines, f"cvt.rn.{operand.name}x2.f32 a, y, x;", "mov.b32 {$0, $1}, a;"]


def _three_inst(operand: Operand) -> list[str]:
    lines = []
    for state, word in (("$2", "a"), ("$3", "b")):
        lines += [
            f"mad.lo.u32 {word}, {state}, 89226354, 64248484;",
            f"lop3.b32 {word}, {word}, 0x8fff8fff, 0x3b603b60, 0x6a;",  # (a & b) ^ c
        ]
    if operand is FLOAT16:
        lines += ["prmt.b32 x0, a, b, 0x5410;", "prmt.b32 x1, a, b, 0x7632;", "add.rn.f16x2 a, x0, x1;"]
        return [".reg .b32 x0, x1;", *lines, "mov.b32 {$0, $1}, a;"]
    for word, number in (("a", "x"), ("b", "y")):
        lines += [
            f"mov.b32 {{p, q}}, {word};",
            f"cvt.f32.f16 {number}, p;",
            "cvt.f32.f16 z, q;",
            f"add.f32 {number}, {number}, z;",
        ]
    return [*lines, f"cvt.rn.{operand.name}x2.f32 a, y, x;", "mov.b32 {$0, $1}, a;"]
