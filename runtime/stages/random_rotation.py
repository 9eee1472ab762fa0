"""Rotation by a random orthogonal matrix along the last dimension."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ..errors import RequestError
from .rotation import Rotation, placed

_LARGEST = 8192  # a matrix of this size takes a minute and half a gibibyte


@dataclass(frozen=True)
class RandomRotation(Rotation):
    """Rotate the last dimension by a random orthogonal matrix, block by block.

    `block` is the largest block: a dimension that it does not divide is rotated in blocks of its largest
    divisor below (96 in one block of 96, 640 in blocks of 128); one that has none, a prime, is refused.
    `full` rotates the whole dimension at once. `seed` decides on the matrix, uniformly distributed over all
    rotations and reflections (Mezzadri, math-ph/0609050, section 5), the same for every block; nothing else
    is kept of it.
    """

    block: int | Literal["full"] = 128
    seed: int = 0
    kind: Literal["rotate"] = "rotate"

    def __post_init__(self) -> None:
        if self.block != "full" and not 2 <= self.block <= _LARGEST:
            raise ValueError(f"block must be between 2 and {_LARGEST}, or full, got {self.block}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 up, got {self.seed}")

    def check(self, shape: tuple[int, ...]) -> None:
        size = shape[-1] if shape else 0
        block = self.block_for(size)
        if 2 <= block <= _LARGEST:
            return
        why = "a matrix of that size takes too long" if block > _LARGEST else "no block divides it"
        raise RequestError(
            f"{self} cannot rotate a last dimension of {size}: {why}",
            advice="leave this tensor out with `ignore`, or choose another block",
        )

    def block_for(self, size: int) -> int:
        """The block that a dimension of this size is rotated in; 1 when it cannot be."""
        if self.block == "full" or size <= self.block:
            return max(size, 1)
        return next(block for block in range(self.block, 0, -1) if size % block == 0)

    def turn(self, x: Tensor, back: bool) -> Tensor:
        block = self.block_for(x.shape[-1])
        matrix = random_orthogonal(self.seed, block, x.dtype, x.device)
        return x.reshape(-1, block) @ (matrix.t() if back else matrix)

    def __str__(self) -> str:
        return f"rotate({self.block}{f', seed={self.seed}' if self.seed else ''})"


@lru_cache(maxsize=8)
def random_orthogonal(seed: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthogonal factor of a Gaussian matrix `[size, size]`, signs such that it is uniform (Haar)."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return placed(q * r.diagonal().sign(), dtype, device)
