"""Finds good matrices for the `xor` code: `python -m rhoc.runtime.trellises.screen [k,L ...]`.

Matrices that are alike in all that `xor` asks of them still differ by a percent or two in squared error. Each
of a few seeds encodes the same Gaussian numbers; the best five encode more of them, and the best one wins.
"""

from __future__ import annotations

import sys

import torch

from .viterbi import Bitshift, shortest_path
from .xor import xor_values

_COLUMNS = 2048


def squared_error(num_bits: int, state_bits: int, seed: int, rows: int, sample: int) -> float:
    """Mean squared error of a matrix on standard normal numbers, both ends of the paths free."""
    values = xor_values(num_bits, state_bits, seed).float()
    x = torch.randn(rows, _COLUMNS, generator=torch.Generator().manual_seed(sample))
    states = shortest_path(Bitshift(values, num_bits), x)
    return float((x - values[states]).square().mean())


def best_seed(num_bits: int, state_bits: int, candidates: int = 16, rows: int = 4) -> tuple[int, float]:
    """The best seed and its error."""
    first = sorted((squared_error(num_bits, state_bits, seed, rows, 0), seed) for seed in range(candidates))
    again = [(squared_error(num_bits, state_bits, seed, 4 * rows, 1), seed) for _, seed in first[:5]]
    error, seed = min(again)
    return seed, error


def main(arguments: list[str]) -> int:
    """Print the best seed for each pair of bits and bits of state."""
    for pair in arguments:
        num_bits, state_bits = map(int, pair.split(","))
        seed, error = best_seed(num_bits, state_bits)
        print(f"({num_bits}, {state_bits}): {seed}  # {error:.5f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
