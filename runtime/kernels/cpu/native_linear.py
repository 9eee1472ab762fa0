"""Weight-only linear on a CPU for every matrix of scalar codes, in C++ that reads the stored fields.

Three regimes by the number of inputs (rows of x). Up to four, levels are looked up in registers and
multiplied there, so that a weight costs what reading its bits costs (few.h; with AVX2 alone up to two, in
few_eights.h and one_input.h, and for 16 levels up to four, in few_sixteen.h). Above, tiles of rows are
decoded into the cache and multiplied from there (strip.h). From `_MANY` inputs of bfloat16 on, all of the
weight is decoded, and torch's product is up to a fifth faster; for float32 with AVX-512 it nowhere is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...stages.precision import cast
from ..base import Call, Kernel
from ..dense_product import dense_linear, product_dtype
from ..fixed_weight import with_gradient
from .matrix import EIGHTS, PAIRS, WIDE, decoded, has, product, refusal, with_plan

_MANY = {PAIRS: 96, WIDE: 1 << 40, EIGHTS: 512, 0: 32}
"""By what the processor has: inputs for which torch's product is faster, for 4096 x 4096 on Zen 5, and on
Zen 4 without AVX-512."""


class CpuLinear(Kernel):
    """y = x R^T + b; inputs of float32 and float16 are multiplied in float32, those of bfloat16 exactly.

    But for few of bfloat16 by 16 levels with AVX2 alone: there both are rounded to 15 bits (few_sixteen.h).
    """

    name: ClassVar[str] = "cpu_linear"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    operation: ClassVar[str] = "linear"

    @property
    def layout(self) -> str:
        return "cpu_plan"

    def refuse(self, call: Call) -> str | None:
        return refusal(call)

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return with_plan(call, stored)

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        return _linear(call, x, stored, bias)


def _linear(call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    rows, columns = call.shape
    precision = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32

    def compute(x: Tensor, bias: Tensor | None) -> Tensor:
        if x.numel() < _many(x.dtype) * columns:
            return cast(product(call, x, stored, bias, precision), x.dtype)
        entered = x.reshape(-1, columns).to(precision)
        added = None if bias is None else bias.to(precision)
        result = dense_linear(entered, decoded(call, stored, product_dtype(entered)), added)
        return result.to(x.dtype).reshape(*x.shape[:-1], rows)

    def weight() -> Tensor:
        return decoded(call, stored, torch.float32)

    return with_gradient(compute, weight, x, bias)


def _many(dtype: torch.dtype) -> int:
    """From how many inputs on decoding all of the weight is faster."""
    level = has()
    return _MANY[WIDE if level == PAIRS and dtype != torch.bfloat16 else level]
