"""The contract of a coder: a row of small symbols to bytes that carry their own table, and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ..errors import WorkError

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]

_LONGEST = 1 << 14  # symbols that one lane codes one after the other in a long row
_SHORT = 16  # a short row of n symbols has sqrt(n) / 16 lanes


class Coder(ABC):
    """Symbols `[n]` below 256, at least two of them different, to bytes `[m]`. Stateless.

    A row is cut into `lane_count(n)` lanes that are coded side by side, so that a step of a loop in Python
    does one symbol of every lane.
    """

    @abstractmethod
    def encode(self, symbols: Bytes, counts: Counts) -> Bytes:
        """The table and the coded symbols; `counts[s]` is how often s occurs."""

    @abstractmethod
    def decode(self, data: Bytes, count: int, alphabet: int) -> Bytes:
        """`count` symbols below `alphabet` from what `encode` gave for as many counts.

        Raises:
            WorkError: the bytes are damaged.
        """

    @abstractmethod
    def expected_bytes(self, probabilities: NDArray[np.float64], count: int) -> float:
        """About how many bytes `count` symbols of these probabilities take."""


def lane_count(count: int) -> int:
    """Lanes of a row of `count` symbols: few enough to cost little room, enough to take few steps."""
    return max(1, math.ceil(max(count / _LONGEST, math.sqrt(count) / _SHORT)))


def entropy_bits(probabilities: NDArray[np.float64]) -> float:
    """Entropy of one symbol in bits (Shannon)."""
    some = probabilities[probabilities > 0]
    return float(-(some * np.log2(some)).sum())


def damaged(what: str) -> WorkError:
    """The error of coded bytes that nothing encodes to."""
    return WorkError(f"entropy-coded bytes are damaged: {what}", advice="load them from another copy")


class Reader:
    """Consecutive arrays out of bytes."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int, dtype: str) -> NDArray[np.generic]:
        """The next `count` little-endian numbers. Raises WorkError when the bytes end before."""
        size = count * np.dtype(dtype).itemsize
        if self.position + size > len(self.data):
            raise damaged("they end too early")
        self.position += size
        return np.frombuffer(self.data[self.position - size : self.position].tobytes(), dtype)

    def rest(self, dtype: str) -> NDArray[np.generic]:
        """All that is left. Raises WorkError when it ends amid a number."""
        count, slack = divmod(len(self.data) - self.position, np.dtype(dtype).itemsize)
        if slack:
            raise damaged("they end amid a number")
        return self.take(count, dtype)


def joined(*arrays: NDArray[np.generic]) -> Bytes:
    """Arrays, little-endian already, one after the other as bytes."""
    return np.concatenate([np.ascontiguousarray(array).view(np.uint8).reshape(-1) for array in arrays])
