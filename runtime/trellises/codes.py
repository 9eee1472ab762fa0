"""Codes of the bitshift trellis: the number that each state stands for, in units of the data's rms."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .xor import xor_values

CodeName = Literal["table", "xor", "1mad", "3inst"]

FILE = Path(__file__).with_name("tables.safetensors")
TABLE_STATE_BITS = (8, 10, 12)  # states of the trained tables that ship, for 1 to 4 bits

_WORD = (1 << 32) - 1


@lru_cache(maxsize=16)
def values(code: CodeName, num_bits: int, state_bits: int) -> Tensor:
    """The value of each state, float32 `[2^state_bits]`; the best for unit-variance Gaussian data."""
    if code == "table":
        return _from_file(num_bits, state_bits)
    if code == "xor":
        return xor_values(num_bits, state_bits).float()
    states = torch.arange(1 << state_bits)
    numbers = one_mad(states) if code == "1mad" else three_inst(states)
    spread = numbers.square().mean().sqrt()
    best: Tensor = numbers / spread * (1 - 4.0**-num_bits) ** 0.5  # variance 1 - D, as the theory asks
    return best.float()


def one_mad(states: Tensor) -> Tensor:
    """QTIP's 1MAD (2406.11235, algorithm 1): the sum of the bytes of a x + b mod 2^32, nearly normal."""
    word = (states * 34038481 + 76625530) & _WORD
    total = torch.stack([(word >> shift) & 255 for shift in (0, 8, 16, 24)]).sum(0)
    return (total - 510).double() / 147.800537109375


def three_inst(states: Tensor) -> Tensor:
    """QTIP's 3INST (2406.11235, algorithm 2): the sum of two float16 numbers made of scrambled bits.

    Signs, lowest two exponent bits and mantissas of a x + b mod 2^32 are xor-ed onto those of 0.922.
    """
    word = ((states * 89226354 + 64248484) & 0x8FFF8FFF) ^ 0x3B603B60
    halves = torch.stack([word >> 16, word & 0xFFFF])
    signed = torch.where(halves < 1 << 15, halves, halves - (1 << 16)).to(torch.int16)
    return signed.view(torch.float16).double().sum(0)


def table_name(num_bits: int, state_bits: int) -> str:
    """The name of a table in the file."""
    return f"{num_bits} bits, {state_bits} bits of state"


def _from_file(num_bits: int, state_bits: int) -> Tensor:
    """A trained table: half of it is stored, and the complement of a state has the negated value."""
    from safetensors import safe_open

    with safe_open(FILE, framework="pt") as file:
        half = file.get_tensor(table_name(num_bits, state_bits)).float()
    return torch.cat([half, -half.flip(0)])
