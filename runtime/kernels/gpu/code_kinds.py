"""What tensor cores multiply, and what packed codes stand for, as far as machine text tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp, isfinite

import torch


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
