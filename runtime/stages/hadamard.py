"""Block Hadamard rotation along the last dimension (QuEST, 2502.05003, section 3)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Source
from .base import Fields, Sized, Stage


@dataclass(frozen=True)
class Hadamard(Stage):
    """Rotate the last dimension by the normalised Sylvester-Hadamard matrix, block by block.

    `block` is the largest block, a power of two. A dimension that it does not divide is rotated in blocks of
    the largest power of two that does (640 in blocks of 128, 48 in blocks of 16); an odd dimension is
    refused, since nothing would be rotated. The matrix is symmetric and orthogonal, hence its own inverse.
    """

    block: int = 128
    kind: Literal["hadamard"] = "hadamard"

    tags: ClassVar[frozenset[str]] = frozenset({"orthogonal", "lossless"})

    def __post_init__(self) -> None:
        if self.block < 2 or self.block & (self.block - 1):
            below = 2 ** max(1, int(math.log2(max(self.block, 2))))
            raise ValueError(
                f"block must be a power of two, got {self.block}; the nearest are {below} and {2 * below}"
            )

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape or self.block_for(shape[-1]) < 2:
            last = shape[-1] if shape else 0
            raise RequestError(
                f"{self} cannot rotate a last dimension of {last}: no power of two divides it",
                advice="leave this tensor out with `ignore`, or use a spec without a rotation for it",
            )

    def block_for(self, size: int) -> int:
        """The block that a dimension of this size is rotated in."""
        return math.gcd(size, self.block) if size else 1

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return self._rotate(x), {}

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        return self._rotate(carry)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        return x, {}

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Nothing changes for Gaussian numbers; survivors of a sparse stage are mixed into something else."""
        return None if source.keeps else (source, 0.0)

    def _rotate(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape))
        block = self.block_for(x.shape[-1])
        compute = torch.promote_types(x.dtype, torch.float32)
        matrix = hadamard_matrix(block, compute, x.device)
        blocks = x.to(compute).reshape(-1, block)
        with _full_precision(x.device):
            return (blocks @ matrix).reshape(x.shape).to(x.dtype)

    def __str__(self) -> str:
        return f"hadamard({self.block})"


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast kept out: the same numbers must come out in a training step and in a packed model."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@lru_cache(maxsize=32)
def hadamard_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The normalised Sylvester matrix `[size, size]`, size a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (matrix / math.sqrt(size)).to(dtype=dtype, device=device)
