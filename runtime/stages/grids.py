"""Grids: the representable values of a scalar quantiser, as codes and as numbers in units of the scale."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

_EXPONENTS = {  # the bits of an IEEE number that hold its exponent
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}
INTEGER_GRIDS = ("midrise", "midtread", "twos")


class Grid(ABC):
    """Values of a scalar quantiser. `encode` takes numbers in units of the scale to codes of `bits` bits."""

    bits: int

    @property
    @abstractmethod
    def levels(self) -> tuple[float, ...]:
        """All values, ascending."""

    @property
    @abstractmethod
    def absmax_level(self) -> float:
        """The value that the largest magnitude is mapped to under an absmax scale."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Nearest code of each number, uint8, saturating at the ends."""

    @abstractmethod
    def decode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes to values."""

    def project(self, x: Tensor) -> Tensor:
        """Nearest level of each number: `decode(encode(x))` without codes. NaN stays NaN. Overwrites `x`."""
        return self.decode(self.encode(x), x.dtype)

    @cached_property
    def half_width(self) -> float:
        """Half the distance between the two neighbouring levels that lie farthest apart."""
        return max(high - low for low, high in zip(self.levels, self.levels[1:], strict=False)) / 2


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """2^b equally spaced levels, one unit apart (gaussian_error conventions).

    `midrise`: k + 1/2, no zero, the grid of QuEST (b = 1 is the sign). `midtread`: k with |k| below 2^(b-1),
    one level less. `twos`: two's complement, -2^(b-1) to 2^(b-1) - 1, with the absmax rule of
    compressed-tensors and GPTQ, where the largest magnitude goes to (2^b - 1) / 2.
    """

    bits: int
    variant: str

    @cached_property
    def levels(self) -> tuple[float, ...]:
        return tuple(float(k) + self._offset for k in range(self._count))

    @property
    def absmax_level(self) -> float:
        return self.levels[-1] if self.variant != "twos" else (2**self.bits - 1) / 2

    def encode(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.round(x - self._offset), 0, self._count - 1).to(torch.uint8)

    def decode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return codes.to(dtype).add_(self._offset)  # codes are integers, so this is a new tensor

    def project(self, x: Tensor) -> Tensor:
        return x.sub_(self._offset).round_().clamp_(0, self._count - 1).add_(self._offset)

    @cached_property
    def _count(self) -> int:
        return (1 << self.bits) - (self.variant == "midtread")

    @cached_property
    def _offset(self) -> float:
        """The value of code zero."""
        low = -(1 << (self.bits - 1))
        return {"midrise": low + 0.5, "midtread": low + 1.0, "twos": float(low)}[self.variant]


@dataclass(frozen=True)
class FloatGrid(Grid):
    """An eXmY minifloat with subnormals; codes are sign, exponent, mantissa from high bit to low.

    All codes are finite values, except that e4m3 and e5m2 follow OCP FP8: e4m3 (fn) gives one code per sign
    to NaN (largest value 448), e5m2 (ieee) its top exponent to infinities and NaN (largest value 57344).
    Rounding is to nearest, ties to even code, saturating.
    """

    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 1 + self.exponent_bits + self.mantissa_bits

    @cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """Non-negative values in the order of their codes."""
        count = 2 ** (self.bits - 1)
        reserved = {(4, 3): 1, (5, 2): 4}.get((self.exponent_bits, self.mantissa_bits), 0)
        return tuple(self._magnitude(code) for code in range(count - reserved))

    @cached_property
    def levels(self) -> tuple[float, ...]:
        return (*(-m for m in reversed(self.magnitudes[1:])), *self.magnitudes)

    @property
    def absmax_level(self) -> float:
        return self.magnitudes[-1]

    def encode(self, x: Tensor) -> Tensor:
        magnitude = x.abs().contiguous()
        code = torch.bucketize(magnitude, _borders(self, x.dtype, x.device), out_int32=True)
        negative = (x < 0) & (code > 0)
        return (code + negative * (1 << (self.bits - 1))).to(torch.uint8)

    def decode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return _value_table(self, dtype, codes.device)[codes.long()]

    def project(self, x: Tensor) -> Tensor:
        if self.mantissa_bits == 0 or x.dtype not in _EXPONENTS:
            return super().project(
                x
            )  # without a mantissa bit, "even code" is not "even multiple of the spacing"
        integer, exponents = _EXPONENTS[x.dtype]
        least, most = self.magnitudes[2**self.mantissa_bits], self.magnitudes[-1]
        binade = (x.view(integer) & exponents).view(x.dtype)  # 2^floor(log2 |x|), exactly
        spacing = binade.clamp_(least, most).mul_(2.0**-self.mantissa_bits)
        return x.div_(spacing).round_().mul_(spacing).clamp_(-most, most).add_(0.0)  # -0.0 + 0.0 is 0.0

    def _magnitude(self, code: int) -> float:
        bias = 2 ** (self.exponent_bits - 1) - 1 if self.exponent_bits else 0
        exponent, mantissa = divmod(code, 2**self.mantissa_bits)
        fraction = mantissa / 2**self.mantissa_bits
        if exponent == 0:
            return float(fraction * 2.0 ** (1 - bias))
        return float((1 + fraction) * 2.0 ** (exponent - bias))


def parse_grid(name: str, num_bits: int) -> Grid:
    """The grid of a name: `midrise`, `midtread`, `twos`, or a minifloat such as `e2m1`.

    Raises:
        ValueError: an unknown name, or one that does not fit `num_bits`.
    """
    if name in INTEGER_GRIDS:
        return IntegerGrid(num_bits, name)
    match = re.fullmatch(r"e([1-6])m([0-6])", name)
    if not match:
        known = ", ".join(INTEGER_GRIDS)
        raise ValueError(f"no grid is called {name!r}; known are {known} and floats such as e2m1 or e4m3")
    grid = FloatGrid(int(match[1]), int(match[2]))
    if grid.bits != num_bits:
        raise ValueError(f"grid {name} has {grid.bits} bits (sign included), but num_bits is {num_bits}")
    return grid


@lru_cache(maxsize=64)
def _borders(grid: FloatGrid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The largest number that still rounds down, for each pair of neighbouring magnitudes.

    That is the middle where the lower code is even, and the number just below the middle where it is odd.
    """
    values = torch.tensor(grid.magnitudes, dtype=torch.float64)
    middles = ((values[:-1] + values[1:]) / 2).to(dtype)
    middles[1::2] = torch.nextafter(middles[1::2], torch.zeros((), dtype=dtype))
    return middles.to(device)


@lru_cache(maxsize=64)
def _value_table(grid: FloatGrid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Value of every code, reserved codes included as zero (they are never produced)."""
    half = 2 ** (grid.bits - 1)
    table = torch.zeros(2 * half, dtype=torch.float64)
    values = torch.tensor(grid.magnitudes, dtype=torch.float64)
    table[: len(values)] = values
    table[half : half + len(values)] = -values
    return table.to(dtype=dtype, device=device)
