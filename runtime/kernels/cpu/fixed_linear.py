"""Weight-only linear on processors with AVX2 alone: integers times bfloat16 inputs as fixed-point numbers.

There, one instruction multiplies and adds 16 pairs of words, twice what it does of floats, and a code becomes
a word with fewer instructions than a float. Inputs are rounded to 16 bits, which adds to an error less
than a quarter of what rounding it to bfloat16 does; rows of which that cannot be said are multiplied in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Call, Kernel
from ..fixed_weight import with_gradient
from .fixed_input import BLOCK, FixedInput, enter_fixed, library
from .int8_layout import Described, weight_integers
from .int8_linear import product as integer_product
from .int8_linear import takes_wide
from .matrix import EIGHTS, decoded, has, product, refusal, with_plan

_WORTH = 1 << 19  # multiplications: what is done for inputs first takes 10 to 15 microseconds
_FEW = 4  # rows that few_sixteen.h takes, which looks 16 levels up faster
_SMALLEST = 8  # columns with a scale: for fewer, sums and scales cost more than products do


class CpuFixedLinear(Kernel):
    """y = x R^T + b for matrices of integers of up to 8 bits, and inputs of bfloat16."""

    name: ClassVar[str] = "cpu_fixed_linear"
    operation: ClassVar[str] = "linear"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    @property
    def layout(self) -> str:
        return "cpu_plan"

    def refuse(self, call: Call) -> str | None:
        if call.dtype != torch.bfloat16:
            return f"inputs are {str(call.dtype).removeprefix('torch.')}, not bfloat16"
        reason = refusal(call)
        if reason is not None:
            return reason
        if has() != EIGHTS:
            return "it is for processors with AVX2 and no AVX-512"
        found = _described(call)
        if isinstance(found, str):
            return found
        entering = library()
        return entering if isinstance(entering, str) else takes_wide(found)

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return with_plan(call, stored)

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        found = _described(call)
        assert isinstance(found, Described), "the call was refused"

        def compute(x: Tensor, bias: Tensor | None) -> Tensor:
            flat, shape = x.reshape(-1, call.shape[1]), (*x.shape[:-1], call.shape[0])
            looked_up = found.integers.table and found.matrix.bits == 4
            if flat.numel() * call.shape[0] < _WORTH or (looked_up and len(flat) <= _FEW):
                return product(call, flat, stored, bias, x.dtype).reshape(shape)
            result = torch.empty(len(flat), call.shape[0], dtype=x.dtype)
            entered, good = enter_fixed(found.input, flat)
            added = None if bias is None else bias.float().contiguous()
            integer_product(found, entered, with_plan(call, stored), None, added, result)
            if not good.all():
                result[~good] = product(call, flat[~good], stored, bias, x.dtype)
            return result.reshape(shape)

        return with_gradient(compute, lambda: decoded(call, stored, torch.float32), x, bias)


@lru_cache(maxsize=1024)
def _described(call: Call) -> Described[FixedInput] | str:
    """What a call is to integer products, or why it is not taken."""
    found = weight_integers(call)
    if isinstance(found, str):
        return found
    matrix, integers = found
    assert matrix.scale is not None
    shared = matrix.scale.sharing.columns
    piece = BLOCK if shared >= matrix.columns else math.gcd(BLOCK, shared)
    if piece < _SMALLEST:
        return f"{shared} columns share a scale, and it takes {_SMALLEST} or more that divide {BLOCK}"
    return Described(matrix, integers, FixedInput(matrix.columns), piece)
