"""n:m sparsity: the largest n of every m neighbours, one by one or in whole vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Keep, Source
from .pattern import Pattern, Pools
from .survival import KeepLargest, KeepVectors, independent, untouched


@dataclass(frozen=True)
class Groups(Pattern):
    """n of every m neighbours along the last dimension; `vector` neighbours stay or go together."""

    n: int
    m: int
    vector: int = 1

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape or shape[-1] % self.m:
            last = shape[-1] if shape else 0
            raise RequestError(
                f"{self.n}:{self.m} sparsity does not divide the last dimension of {last}",
                advice="choose a structure whose m divides it, or leave this tensor out with `ignore`",
            )

    def pools(self, shape: tuple[int, ...]) -> Pools:
        groups, units = shape[-1] // self.m, self.m // self.vector
        mask = (*shape[:-1], shape[-1] // self.vector)
        return Pools(mask, (*shape[:-1], groups, units), self.n // self.vector)

    def scores(self, magnitude: Tensor) -> Tensor:
        """A vector's energy is summed in double precision, so that no magnitude is too small for it."""
        if self.vector == 1:
            return magnitude
        planes = torch.unflatten(magnitude, -1, (-1, self.vector)).unbind(-1)
        energy = planes[0].double().square()
        for plane in planes[1:]:
            energy += plane.double().square()
        return energy

    def carry_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] // self.m * self.n)

    def spread(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        return mask if self.vector == 1 else mask.repeat_interleave(self.vector, -1)

    def tensor_shape(self, mask: tuple[int, ...]) -> tuple[int, ...] | None:
        return (*mask[:-1], mask[-1] * self.vector)

    def numbers(self, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.vector == 1:
            return places
        inside = torch.arange(self.vector, device=places.device)
        return (places.unsqueeze(-1) * self.vector + inside).reshape(-1)

    def survival(self, source: Source) -> Keep | None:
        """Exact, by order statistics; None after a stage that decided over neighbours together."""
        if self.vector == 1:
            return KeepLargest(self.n, self.m, source) if independent(source) else None
        if not untouched(source):
            return None
        return KeepVectors(self.n // self.vector, self.m // self.vector, self.vector)
