"""Seeds of random numbers: drawn from torch's global generator, and derived from one another."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 2**64 - 1
_PLACE = 0xD1342543DE82EF95  # odd, of Steele and Vigna (2001.05304)
_SEEDS = 2**62

NO_SEED = torch.empty(0, dtype=torch.int64)
"""The seed where nothing is drawn."""


def fresh_seed() -> Tensor:
    """A seed from torch's global generator, an int64 scalar on the CPU.

    Under torch.compile an operator that only gradients need may be moved to the backward pass, and takes a
    draw of its own there: what must share a seed has to be one operator.
    """
    return torch.randint(_SEEDS, (), device="cpu")


def derived(seed: int, *places: int) -> int:
    """A seed for each place under a seed, from 0 up to 2^63: splitmix64 (Steele, Lea, Flood 2014) of both.

    Seeds that follow each other give numbers that have nothing to do with each other.
    """
    state = _mixed(seed)
    for place in places:
        state = _mixed(state + (place + 1) * _PLACE)  # seeds and places cannot stand for each other
    return state >> 1


def _mixed(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _WORD
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
    return state ^ (state >> 31)
