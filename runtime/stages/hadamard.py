"""Hadamard rotation along the last dimension, in blocks (QuEST, 2502.05003, section 3) or whole."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import RequestError
from ..hadamard_matrices import core_order, paley, sylvester
from .rotation import Rotation, placed

_DENSE = 256  # up to here one matmul with the whole matrix is as fast as anything
_FACTOR_BITS = 5  # the fastest factors of a larger one have 16 or 32 rows


@dataclass(frozen=True)
class Hadamard(Rotation):
    """Rotate the last dimension by a normalised Hadamard matrix, block by block.

    `block` is the largest block: a power of two (Sylvester's matrix), a power of two times an order of
    Paley's matrices (12, 20, 28, 36, ...), or `full` for the whole dimension at once (14336 = 512 * 28).
    Where a power of two does not divide the dimension, blocks are of the largest power of two that does
    (640 in blocks of 128, 48 in blocks of 16); an odd dimension is refused, since nothing would be rotated.
    Other blocks must divide it.
    `signs` is the seed of random signs that the channels are multiplied by before (the randomised Hadamard
    transform of QuIP#, 2402.04396, section 3); unset, none. The seed is all that is kept of them. `fresh`
    draws other signs for every tensor of training (Quartet, 2505.14669, algorithm 1); elsewhere, and in what
    is stored, they are those of seed 0.
    """

    block: int | Literal["full"] = 128
    signs: int | Literal["fresh"] | None = None
    kind: Literal["hadamard"] = "hadamard"

    _seed: ClassVar[int | None] = None  # no option: what `drawn` bound the fresh signs to

    def __post_init__(self) -> None:
        if isinstance(self.signs, int) and not 0 <= self.signs < 2**63:
            raise ValueError(f"signs is a seed, a whole number from 0 up, or fresh, got {self.signs}")
        if self.block == "full":
            return
        if self.block < 2 or core_order(self.block) is None:
            below = 2 ** max(1, int(math.log2(max(self.block, 2))))
            raise ValueError(
                "block must be a power of two, or that times an order of Paley's matrices (12, 20, 28, ...), "
                f"got {self.block}; the nearest powers of two are {below} and {2 * below}"
            )

    @property
    def random(self) -> bool:
        return self.signs == "fresh"

    def drawn(self, seed: int) -> Hadamard:
        if not self.random:
            return self
        found = copy(self)
        object.__setattr__(found, "_seed", seed)
        return found

    def check(self, shape: tuple[int, ...]) -> None:
        size = shape[-1] if shape else 0
        if self.block_for(size) >= 2:
            return
        why, advice = "no power of two divides it", "use a spec without a rotation for it"
        if self.block == "full" and size > 1:
            odd = size // (size & -size)
            why = f"no Hadamard matrix of that order is known here (a power of two times {odd})"
            advice = "use blocks, for example block: 128"
        elif self.block != "full" and self.block & (self.block - 1):
            why, advice = f"{self.block} does not divide it", "use a power of two"
        raise RequestError(
            f"{self} cannot rotate a last dimension of {size}: {why}",
            advice=f"leave this tensor out with `ignore`, or {advice}",
        )

    def block_for(self, size: int) -> int:
        """The block that a dimension of this size is rotated in; 1 when it cannot be."""
        if not size:
            return 1
        if self.block == "full":
            return size if core_order(size) is not None else 1
        if self.block & (self.block - 1):
            return self.block if size % self.block == 0 else 1
        return math.gcd(size, self.block)

    def turn(self, x: Tensor, back: bool) -> Tensor:
        signs = self._signs_for(x)
        if signs is not None and not back:
            x = x * signs
        rotated = _times_matrix(x, self.block_for(x.shape[-1]), back).reshape(x.shape)
        return rotated * signs if signs is not None and back else rotated

    def _signs_for(self, x: Tensor) -> Tensor | None:
        """The signs of the channels of `x`; those that are drawn are used once, and not remembered."""
        if self._seed is not None:
            return random_signs(self._seed, x.shape[-1], x.dtype, x.device)
        if self.signs is None:
            return None
        seed = 0 if self.signs == "fresh" else self.signs
        return fixed_signs(seed, x.shape[-1], x.dtype, x.device)

    def __str__(self) -> str:
        return f"hadamard({self.block}{'' if self.signs is None else f', signs={self.signs}'})"


def _times_matrix(x: Tensor, block: int, transposed: bool) -> Tensor:
    """Blocks of `x` along its last dimension times the normalised matrix, one Kronecker factor at a time.

    Row i of blocks seen as `[f_1, ..., f_k]` is multiplied along every f by the factor of that size; a matmul
    with the whole matrix takes the sum over block numbers for each, this one the sum over f_1 + ... + f_k.
    """
    factors = kronecker_factors(block)
    matrices = [hadamard_matrix(order, x.dtype, x.device) for order in factors]
    inner, last = factors[-1], matrices[-1]
    if transposed and core_order(inner) != 1:  # Sylvester's are symmetric
        last = last.t()
    x = x.reshape(-1, inner) @ last
    for order, matrix in zip(factors[-2::-1], matrices[-2::-1], strict=True):
        x = torch.matmul(matrix, x.reshape(-1, order, inner))  # powers of two, and so symmetric
        inner *= order
    return x


@lru_cache(maxsize=256)
def kronecker_factors(order: int) -> tuple[int, ...]:
    """The orders of the factors of the matrix of this order: powers of two, and last the one that is not.

    One factor for small orders, and factors of at most 32 rows beside Paley's for larger ones.
    """
    core = core_order(order)
    if order <= _DENSE or core is None or core == order:
        return (order,)
    doublings = (order // core).bit_length() - 1
    parts = -(-doublings // _FACTOR_BITS)
    powers = [2 ** ((doublings + place) // parts) for place in reversed(range(parts))]
    return tuple(powers) if core == 1 else (*powers, core)


@lru_cache(maxsize=64)
def hadamard_matrix(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The normalised matrix `[order, order]`: Sylvester's, times Paley's where the order needs it."""
    core = core_order(order)
    if core is None:
        raise ValueError(f"no Hadamard matrix of order {order} is known here")
    signs = sylvester(order // core)
    signs = signs if core == 1 else np.kron(signs, paley(core))
    return placed(torch.from_numpy(signs).double() / math.sqrt(order), dtype, device)


def random_signs(seed: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """+1 and -1 at random, `[size]`."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (size,), generator=generator)
    return placed((1 - 2 * bits).double(), dtype, device)


fixed_signs = lru_cache(maxsize=256)(random_signs)
