"""How scales are stored: in a floating dtype, as powers of two in a byte, or encoded by a chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...representation import Representation
from ...stage import Fields, Sized
from ..parts import code_fields, part_layout, part_widths, restored
from ..precision import cast

FIELD = "scale"
DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
E8M0 = "e8m0"
_BIAS = 127  # of an e8m0 exponent; 254 is the largest, 255 is not a number


class Storage(ABC):
    """Scales to stored fields and back. `restore` gives exactly what `store` was rounded to."""

    @property
    def positive(self) -> bool:
        """Whether every scale that is restored is above zero."""
        return False

    @abstractmethod
    def store(self, scale: Tensor, own: torch.dtype) -> Fields:
        """Scales in float32 or float64 to fields; `own` is the dtype of the tensor that they belong to."""

    @abstractmethod
    def restore(self, fields: Fields, shape: tuple[int, ...]) -> Tensor:
        """Fields to scales of this shape, in float32 at least."""

    @abstractmethod
    def layout(self, shape: tuple[int, ...], own: torch.dtype) -> dict[str, Sized]:
        """The fields for scales of this shape, by arithmetic."""

    def widths(self) -> Mapping[str, int]:
        """Stored bits of the integer fields."""
        return {}


@dataclass(frozen=True)
class Floating(Storage):
    """Rounded to a floating dtype; without a name, the tensor's own. Saturates, and never rounds to zero.

    `signed`: scales may be negative.
    """

    dtype: str | None = None
    signed: bool = False

    @property
    def positive(self) -> bool:
        return not self.signed

    def store(self, scale: Tensor, own: torch.dtype) -> Fields:
        stored = self._dtype(own)
        least, most = _range(stored)
        if not self.signed:
            return {FIELD: cast(scale.clamp(least, most), stored)}
        scale = torch.where(scale.abs() < least, least, scale)
        return {FIELD: scale.clamp(-most, most).to(stored)}

    def restore(self, fields: Fields, shape: tuple[int, ...]) -> Tensor:
        scale = fields[FIELD]
        return cast(scale, torch.float64 if scale.dtype == torch.float64 else torch.float32)

    def layout(self, shape: tuple[int, ...], own: torch.dtype) -> dict[str, Sized]:
        return {FIELD: Sized(shape, self._dtype(own))}

    def _dtype(self, own: torch.dtype) -> torch.dtype:
        return getattr(torch, self.dtype) if self.dtype else own


class PowerOfTwo(Storage):
    """e8m0 (OCP MX 1.0, section 5.4.1): a byte e for 2^(e - 127), the nearest by its exponent."""

    def store(self, scale: Tensor, own: torch.dtype) -> Fields:
        fraction, exponent = torch.frexp(scale)  # scale = fraction * 2^exponent, fraction in [1/2, 1)
        biased = exponent - 1 + (fraction >= 0.5**0.5).to(exponent.dtype) + _BIAS
        return {FIELD: torch.where(scale > 0, biased, 0).clamp(0, 2 * _BIAS).to(torch.uint8)}

    def restore(self, fields: Fields, shape: tuple[int, ...]) -> Tensor:
        return _powers_of_two(fields[FIELD].device)[fields[FIELD].long()]

    def layout(self, shape: tuple[int, ...], own: torch.dtype) -> dict[str, Sized]:
        return {FIELD: Sized(shape, torch.uint8)}

    def widths(self) -> Mapping[str, int]:
        return {FIELD: 8}


@dataclass(frozen=True)
class Nested(Storage):
    """Encoded by a chain: double quantisation (QLoRA 2305.14314, section 3; NVFP4's second scale)."""

    chain: Representation

    def store(self, scale: Tensor, own: torch.dtype) -> Fields:
        return code_fields(FIELD, self.chain.encode(scale))

    def restore(self, fields: Fields, shape: tuple[int, ...]) -> Tensor:
        return restored(FIELD, self.chain, fields, shape, torch.float32)

    def layout(self, shape: tuple[int, ...], own: torch.dtype) -> dict[str, Sized]:
        return part_layout(FIELD, self.chain, shape, torch.promote_types(own, torch.float32))

    def widths(self) -> Mapping[str, int]:
        return part_widths(FIELD, self.chain)


@lru_cache(maxsize=16)
def _range(dtype: torch.dtype) -> tuple[float, float]:
    """The smallest scale worth storing, so that a block of zeros has one to divide by, and the largest.

    float16 and 8-bit floats are too narrow to do without their subnormal numbers; in the others they may be
    flushed to zero.
    """
    info = torch.finfo(dtype)
    narrow = dtype == torch.float16 or dtype.itemsize == 1
    return float(info.tiny * info.eps if narrow else info.tiny), float(info.max)


@lru_cache(maxsize=8)
def _powers_of_two(device: torch.device) -> Tensor:
    """The value of every e8m0 code."""
    exponents = torch.arange(256, dtype=torch.float64) - _BIAS
    powers = torch.exp2(exponents)
    powers[255] = torch.nan
    return powers.to(torch.float32).to(device)
