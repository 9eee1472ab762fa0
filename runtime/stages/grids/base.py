"""The contract of a grid: the representable values of a scalar quantiser, as codes and as numbers."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor


class Grid(ABC):
    """Values of a scalar quantiser. `encode` takes numbers in units of the scale to codes of `bits` bits.

    Every number goes to the level nearest to it, and beyond the ends to the end. NaN has no code: what
    `encode` makes of it means nothing, and `project` hands it through.
    """

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
        """Codes to values, in a new tensor."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Nearest level of each number: `decode(encode(x))` without codes. NaN stays NaN. Overwrites `x`."""

    @cached_property
    def half_width(self) -> float:
        """Half the distance between the two neighbouring levels that lie farthest apart."""
        return max(high - low for low, high in itertools.pairwise(self.levels)) / 2
