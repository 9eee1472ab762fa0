"""Lines of PTX as they are written one after the other, on registers that need no names."""

from __future__ import annotations

from .code_kinds import Operand

AND_OR, NOT_AND_OR, SELECT = 0xEA, 0xAE, 0xCA
"""Functions of three bits a, b, c: (a & b) | c, (~a & b) | c, a ? b : c."""

BOTH = 0x00010001
"""Times a 16-bit pattern: the pattern in both lanes."""


class Writer:
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


def pair(operand: Operand, value: float) -> int:
    """A number in both lanes."""
    return operand.bits(value) * BOTH
