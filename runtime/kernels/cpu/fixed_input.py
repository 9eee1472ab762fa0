"""Inputs as fixed-point numbers of 16 bits, for products of integers whose inputs are not quantised."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...native.build import Library, loaded
from ...native.threads import shared_out
from .int8_input import Codes

BLOCK = 256
"""Columns that share a scale."""

SOURCES = Library("fixed_input", Path(__file__).parent, "fixed_input.cpp", ("vectors.h",))


@dataclass(frozen=True)
class FixedInput:
    """Rows of `size` numbers."""

    size: int

    @property
    def columns(self) -> int:
        """That share a scale."""
        return BLOCK

    @property
    def scales(self) -> int:
        """Of a row."""
        return -(-self.size // BLOCK)

    @property
    def stride(self) -> int:
        """Codes from one row to the next, zero beyond the numbers."""
        return -(-self.size // 64) * 64


def enter_fixed(how: FixedInput, x: Tensor) -> tuple[Codes, Tensor]:
    """The rows of `x` `[m, k]` (float32 or bfloat16) as int16 codes `[m, stride]` and scales `[m, blocks]`,
    and which of them are well represented so (bool `[m]`): their errors are below a quarter of what rounding
    a result to bfloat16 makes. Those with NaN or infinite numbers are not.
    """
    functions = library()
    assert not isinstance(functions, str), "the call was refused"
    x, rows = x.contiguous(), len(x)
    codes = torch.empty(rows, how.stride, dtype=torch.int16)
    scales, good = torch.empty(rows, how.scales), torch.empty(rows, dtype=torch.bool)
    given = (x.data_ptr(), x.dtype == torch.bfloat16, how.size, how.columns, how.stride)
    to = (codes.data_ptr(), scales.data_ptr(), good.data_ptr())

    def work(first: int, last: int) -> None:
        functions.rhoc_fixed_enter(*given, *to, first, last)

    shared_out(work, rows, x.numel())
    return Codes(codes, scales, None), good


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | str:
    """The compiled function, or why there is none."""
    found = loaded(SOURCES)
    if isinstance(found, str):
        return found
    address, number = ctypes.c_void_p, ctypes.c_int64
    found.rhoc_fixed_enter.argtypes = [address, ctypes.c_int32, *[number] * 3, *[address] * 3, number, number]
    found.rhoc_fixed_enter.restype = None
    return found
