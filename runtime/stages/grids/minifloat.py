"""Floating-point numbers of a few bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from .pieces import pieces
from .table import TableGrid

Variant = Literal["ocp", "fn", "ieee", "fnuz", "all"]

_EXPONENTS = {  # the bits of an IEEE number that hold its exponent
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}
_OCP: dict[tuple[int, int], Variant] = {(4, 3): "fn", (5, 2): "ieee"}


@dataclass(frozen=True)
class FloatGrid(TableGrid):
    """An eXmY minifloat with subnormals; codes are sign, exponent, mantissa from high bit to low.

    `variant` says which codes are no numbers. `all`: none, every code is a finite value. `ieee`: the top
    exponent, infinities and NaN. `fn`: no infinities; a float of eight bits gives its last code of each sign
    to NaN, a narrower one none. `fnuz`: the code of minus zero is NaN, and the exponent bias is one larger.
    `ocp`: as OCP's formats have it, e4m3 `fn` (largest value 448), e5m2 `ieee` (57344), others `all`.
    The names are those of LLVM and ml_dtypes. Rounding is to nearest, ties to even code, saturating.

    Raises:
        ValueError: a variant that leaves no number but zero and the subnormal ones.
    """

    exponent_bits: int
    mantissa_bits: int
    variant: Variant = "ocp"

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {self.variant!r}")
        if len(self.magnitudes) <= 2**self.mantissa_bits:
            name = f"e{self.exponent_bits}m{self.mantissa_bits}"
            raise ValueError(
                f"{name}{self.variant} has no normal number left; use {name} or more exponent bits"
            )

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 1 + self.exponent_bits + self.mantissa_bits

    @cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """Non-negative values in the order of their codes."""
        count = 2 ** (self.bits - 1)
        return tuple(self._magnitude(code) for code in range(count - self._reserved))

    @cached_property
    def levels(self) -> tuple[float, ...]:
        return (*(-m for m in reversed(self.magnitudes[1:])), *self.magnitudes)

    @property
    def absmax_level(self) -> float:
        return self.magnitudes[-1]

    @cached_property
    def level_codes(self) -> tuple[int, ...]:
        half, count = 2 ** (self.bits - 1), len(self.magnitudes)
        return (*range(half + count - 1, half, -1), *range(count))

    @cached_property
    def code_values(self) -> tuple[float, ...]:
        special = [math.nan] * self._reserved
        if self._kind == "ieee":
            special[0] = math.inf
        positive = (*self.magnitudes, *special)
        negative = [-value for value in positive]
        if self._kind == "fnuz":
            negative[0] = math.nan
        return (*positive, *negative)

    def project(self, x: Tensor) -> Tensor:
        if self.mantissa_bits == 0 or x.dtype not in _EXPONENTS:
            # Without a mantissa bit, "even code" is not "even multiple of the spacing".
            return super().project(x)
        for part in pieces(x):
            self._round(part)
        return x

    def _round(self, x: Tensor) -> None:
        """Each number to its nearest level, in place."""
        integer, exponents = _EXPONENTS[x.dtype]
        least, most = self.magnitudes[2**self.mantissa_bits], self.magnitudes[-1]
        binade = (x.view(integer) & exponents).view(x.dtype)  # 2^floor(log2 |x|), exactly
        spacing = binade.clamp_(least, most).mul_(2.0**-self.mantissa_bits)
        x.div_(spacing).round_().mul_(spacing).clamp_(-most, most).add_(0.0)  # -0.0 + 0.0 is 0.0

    @property
    def _kind(self) -> Variant:
        """The variant that `ocp` stands for."""
        known = (self.exponent_bits, self.mantissa_bits)
        return _OCP.get(known, "all") if self.variant == "ocp" else self.variant

    @property
    def _reserved(self) -> int:
        """Codes of each sign, from the top, that are no finite value."""
        if self._kind == "ieee":
            return 1 << self.mantissa_bits
        return int(self._kind == "fn" and self.bits == 8)

    def _magnitude(self, code: int) -> float:
        bias = 2 ** (self.exponent_bits - 1) - 1 + (self._kind == "fnuz")
        exponent, mantissa = divmod(code, 2**self.mantissa_bits)
        fraction = mantissa / 2**self.mantissa_bits
        if exponent == 0:
            return float(fraction * 2.0 ** (1 - bias))
        return float((1 + fraction) * 2.0 ** (exponent - bias))
