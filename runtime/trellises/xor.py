"""A computed trellis code: the rank of a state's value is a linear function of its bits, over GF(2).

Every bit of the rank is the parity of some of the state's bits, one row of a matrix, and the value is the
Gaussian quantile of that rank. Three properties are asked of the matrix. It is invertible, so that every rank
occurs once. Its top rows make the branches that leave a state, and those that meet in one, fall into
different strata of the Gaussian, as set partitioning does in the trellis codes of Marcellin and Fischer
(1990). Its rows have odd weight, so that complementing a state negates its value. Beyond that the matrix is
random; which random one is the best of a few was measured (`screen`).
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

# Seeds of the matrices that did best in `screen`, by (bits per weight, bits of state); others take 0.
_SEEDS = {
    (1, 8): 10,
    (1, 10): 3,
    (1, 12): 8,
    (1, 14): 1,
    (1, 16): 9,
    (2, 8): 10,
    (2, 10): 13,
    (2, 12): 14,
    (2, 14): 1,
    (2, 16): 4,
    (3, 8): 2,
    (3, 10): 4,
    (3, 12): 6,
    (3, 14): 7,
    (4, 8): 7,
    (4, 10): 14,
    (4, 14): 13,
    (4, 16): 3,
}


def xor_values(num_bits: int, state_bits: int, seed: int | None = None) -> Tensor:
    """The value of each state for unit-variance data, float64 `[2^state_bits]`.

    What the best code of this rate reproduces has variance 1 - 4^-num_bits (rate-distortion theory).
    """
    if seed is None:
        seed = _SEEDS.get((num_bits, state_bits), 0)
    rows = matrix(num_bits, state_bits, seed)
    ranks = torch.zeros(1, dtype=torch.int64)
    for bit in range(state_bits):
        column = sum(((row >> bit) & 1) << (state_bits - 1 - i) for i, row in enumerate(rows))
        ranks = torch.cat([ranks, ranks ^ column])
    values: Tensor = torch.special.ndtri((ranks.double() + 0.5) / len(ranks)) * (1 - 4.0**-num_bits) ** 0.5
    return values


def matrix(num_bits: int, state_bits: int, seed: int) -> tuple[int, ...]:
    """Rows of the matrix as masks of a state's bits, from the rank's highest bit to its lowest."""
    draw = random.Random(f"{num_bits} {state_bits} {seed}")
    while True:
        rows = [draw.getrandbits(state_bits) for _ in range(state_bits)]
        rows = [row if row.bit_count() % 2 else row ^ (1 << state_bits // 2) for row in rows]
        entering = [row & ((1 << num_bits) - 1) for row in rows[:num_bits]]
        leaving = [row >> (state_bits - num_bits) for row in rows[:num_bits]]
        if all(_independent(block) for block in (entering, leaving, rows)):
            return tuple(rows)


def _independent(rows: list[int]) -> bool:
    """Whether no sum over GF(2) of some of the rows is zero."""
    basis: list[int] = []
    for row in rows:
        for other in basis:
            row = min(row, row ^ other)
        if not row:
            return False
        basis.append(row)
    return True
