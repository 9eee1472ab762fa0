"""Equally spaced levels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .base import Grid


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """Equally spaced levels, one unit apart, at most 2^b of them (gaussian_error conventions).

    `midrise`: k + 1/2, no zero, the grid of QuEST (b = 1 is the sign). `midtread`: k with |k| below 2^(b-1),
    one level less (b = 2 is ternary). `twos`: two's complement, -2^(b-1) to 2^(b-1) - 1, with the absmax rule
    of compressed-tensors and GPTQ, where the largest magnitude goes to (2^b - 1) / 2. `unsigned`: 0 to
    2^b - 1, for numbers that have a zero point taken off. Codes count the levels from the lowest.

    Numbers halfway between two levels go to the even integer, or up in `midrise`.
    """

    bits: int
    variant: str

    @cached_property
    def levels(self) -> tuple[float, ...]:
        return tuple(k + self._shift for k in range(self._lowest, self._highest + 1))

    @property
    def absmax_level(self) -> float:
        return self.levels[-1] if self.variant != "twos" else (2**self.bits - 1) / 2

    def encode(self, x: Tensor) -> Tensor:
        nearest = x.floor() if self._shift else x.round()
        return nearest.clamp_(self._lowest, self._highest).sub_(self._lowest).to(torch.uint8)

    def decode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return codes.to(dtype).add_(self._lowest + self._shift)  # codes are integers: this is a new tensor

    def project(self, x: Tensor) -> Tensor:
        nearest = x.floor_() if self._shift else x.round_()
        return nearest.clamp_(self._lowest, self._highest).add_(self._shift)  # -0.0 + 0.0 is 0.0

    @cached_property
    def _shift(self) -> float:
        """From the integer below a level to the level."""
        return 0.5 if self.variant == "midrise" else 0.0

    @cached_property
    def _lowest(self) -> int:
        if self.variant == "unsigned":
            return 0
        return (self.variant == "midtread") - (1 << (self.bits - 1))

    @cached_property
    def _highest(self) -> int:
        return (1 << (self.bits if self.variant == "unsigned" else self.bits - 1)) - 1
