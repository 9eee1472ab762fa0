"""Machine text for vectors of E8P: sizes as nibbles, signs by exclusive or, two numbers in an instruction.

A number is a size of 1/2, 3/2 or 5/2, signed, plus or minus 1/4; in quarters it is an integer of at most 11,
which every operand holds. The nibbles of a size are 0, 4 or 8 quarters above 2: put into the mantissa of a
power of two they are numbers, as in `unpacking`.
"""

from __future__ import annotations

from functools import lru_cache

from .code_kinds import BFLOAT16, Operand

_MAGIC = {"bf16": (0x4300, 128 - 2), "f16": (0x6400, 1024 - 2)}  # a power, and what is above the size


@lru_cache(maxsize=2)
def e8p_text(operand: Operand = BFLOAT16) -> tuple[str, str]:
    """Text and constraints: eight numbers in order from the word of sizes and the code, whose lowest bit
    says in which direction they are moved, and the next seven which are negative."""
    magic, above = _MAGIC[operand.name]
    one, less = operand.bits(1.0), operand.bits(float(-above))
    lines = [
        f"mov.b32 o, {_twice(one)};",
        f"mov.b32 l, {_twice(less)};",
        "shl.b32 m, $9, 31;",
        "shr.u32 t, m, 16;",
        f"lop3.b32 m, m, t, {_twice(one)}, 0x1e;",  # (a | b) ^ c: one, or minus one
        "bfe.u32 s, $9, 1, 7;",
        "popc.b32 t, s;",
        "xor.b32 t, t, $8;",
        "shl.b32 t, t, 7;",
        "lop3.b32 s, t, 0x80, s, 0xea;",  # the eighth: (a & b) | c
        "shl.b32 t, s, 15;",
        "or.b32 s, s, t;",
    ]
    for pair in range(4):
        source = "$8"
        if pair:
            lines.append(f"shr.u32 t, $8, {4 * pair};")
            source = "t"
        lines += [
            f"lop3.b32 t, {source}, {_twice(12)}, {_twice(magic)}, 0xea;",
            f"fma.rn.{operand.name}x2 t, t, o, l;",
            f"shl.b32 u, s, {15 - 2 * pair};",
            "lop3.b32 t, u, 0x80008000, t, 0x6a;",  # (a & b) ^ c
            f"fma.rn.{operand.name}x2 t, t, o, m;",
            f"mov.b32 {{${2 * pair}, ${2 * pair + 1}}}, t;",
        ]
    text = "{\n.reg .b32 o, l, m, s, t, u;\n" + "\n".join(lines) + "\n}"
    return text, ",".join(["=h"] * 8 + ["r"] * 2)


def _twice(bits: int) -> int:
    return bits | bits << 16
