"""An encoded tensor, and how its fields are stored."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .packing import packed_length
from .stage import CARRY, Fields


@dataclass(frozen=True)
class FieldLayout:
    """How one field is stored: logical shape and dtype, and bits per element.

    `variable`: the last dimension depends on the numbers that were encoded; the one here is expected for
    Gaussian numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int
    variable: bool = False

    @property
    def packed(self) -> bool:
        """Whether elements are packed below their dtype's width."""
        return self.bits < 8 * self.dtype.itemsize

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the stored tensor: bytes along the last dimension when packed."""
        if not self.packed or not self.shape:
            return self.shape
        return (*self.shape[:-1], packed_length(self.shape[-1], self.bits))

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return prod(self.stored_shape) * (1 if self.packed else self.dtype.itemsize)

    def fits(self, stored: Tensor) -> bool:
        """Whether a stored tensor has this layout; of a variable one, all but its last dimension."""
        shape, here = self.stored_shape, tuple(stored.shape)
        if self.variable:
            return len(here) == len(shape) and here[:-1] == shape[:-1]
        return here == shape


@dataclass(frozen=True)
class Code:
    """An encoded tensor: what the last stage handed on, every stage's fields, and what decode restores.

    `closed`: the last stage handed on nothing, so the carry is empty and not part of the code.
    """

    carry: Tensor
    fields: tuple[Fields, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    closed: bool = False

    def named(self) -> dict[str, Tensor]:
        """All tensors by name: `carry`, and `<position>.<field>` for the fields of each stage."""
        named = {f"{i}.{name}": t for i, fields in enumerate(self.fields) for name, t in fields.items()}
        return named if self.closed else {CARRY: self.carry, **named}
