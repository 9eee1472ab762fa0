"""The contract of a pattern: which numbers of a tensor stay together, and who competes with whom."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..gaussian import Keep, Source


@dataclass(frozen=True)
class Pools:
    """Units that compete for places: numbers, vectors, blocks, rows or columns.

    `mask` is the shape of one bool per unit; `shape`, `[..., units]` of as many entries, has the units that
    compete with each other along its last dimension, of which `kept` stay.
    """

    mask: tuple[int, ...]
    shape: tuple[int, ...]
    kept: int

    @property
    def units(self) -> int:
        """Units of one pool."""
        return self.shape[-1]

    @property
    def index(self) -> tuple[int, ...]:
        """Shape of the places that stay."""
        return (*self.shape[:-1], self.kept)

    @property
    def total(self) -> int:
        """Units that stay, over all pools."""
        return prod(self.index)


class Pattern(ABC):
    """Which numbers stay. Places are the ascending positions `[k]` of units in the flattened mask."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `RequestError` when a tensor of this shape cannot be pruned so."""
        return

    @abstractmethod
    def pools(self, shape: tuple[int, ...]) -> Pools:
        """The units of a tensor of this shape, and how many stay."""

    @abstractmethod
    def scores(self, magnitude: Tensor) -> Tensor:
        """The magnitude of every unit, as the mask is shaped, of a tensor of magnitudes of its numbers."""

    @abstractmethod
    def carry_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the survivors."""

    @abstractmethod
    def spread(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The mask of units as a mask of numbers, of the tensor's shape."""

    @abstractmethod
    def survival(self, source: Source) -> Keep | None:
        """Which Gaussian numbers survive; None where they are not independent draws any more."""

    def tensor_shape(self, mask: tuple[int, ...]) -> tuple[int, ...] | None:
        """The tensor's shape from its mask's; None where that does not tell."""
        return None

    def numbers(self, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Positions of the numbers in the units at `places`, in the order in which they are handed on."""
        return places

    def take(self, x: Tensor, places: Tensor) -> Tensor:
        """The survivors."""
        flat = x.reshape(-1).index_select(0, self.numbers(places, tuple(x.shape)))
        return flat.reshape(self.carry_shape(tuple(x.shape)))

    def take_importance(self, importance: Tensor, places: Tensor) -> Tensor:
        """The importance of the survivors."""
        return self.take(importance, places)

    def put(self, carry: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Survivors back in their places, zeros elsewhere: the inverse of `take`."""
        flat = torch.zeros(prod(shape), dtype=carry.dtype, device=carry.device)
        return flat.scatter_(0, self.numbers(places, shape), carry.reshape(-1)).reshape(shape)


@dataclass(frozen=True)
class Fraction(Pattern):
    """A pattern that zeroes a fraction of the units of every pool, rounded to a whole number."""

    sparsity: float

    def kept(self, units: int) -> int:
        """How many of `units` stay."""
        return units - round(self.sparsity * units)
