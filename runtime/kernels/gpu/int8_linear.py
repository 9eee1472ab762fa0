"""Inputs on integers times weights on integers, by tensor cores: y = enter(x) W^T + b, exact in 32 bits.

W8A8, W4A8 and narrower ones, with inputs of up to 8 bits (and e2m1, whose doubled levels are integers): one
kernel rotates, measures and rounds the input, one multiplies its codes with those of the weight, unpacked in
registers. Scales, zero points and a half step of either grid are applied to sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...interpreted import interpreted
from ...stage import CARRY
from ..base import Call
from ..stored import StoredMatrix
from .coded_launch import Multiplied
from .coded_linear import CodedLinear, Parts, row_sums
from .coded_weight import Weight
from .quantize_input import Codes, quantize_input
from .stored_fields import arguments

_MANY, _MULTIPLE = 512, 16  # rows, and what cuBLAS wants sizes to be multiples of
_BLOCK_M, _BLOCK_N = 32, 128


class Int8Linear(CodedLinear):
    """Inputs and weights as bytes; many rows of whole bytes go through cuBLAS."""

    name: ClassVar[str] = "gpu_int8_linear"
    operation: ClassVar[str] = "input_linear"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    float8: ClassVar[bool] = False

    def multiplied(self, device: torch.device) -> Multiplied:
        return "int8"

    def by_torch(
        self, call: Call, parts: Parts, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor | None:
        if len(x) < _MANY or not takes_integers(parts.matrix, parts.weight):
            return None
        codes = quantize_input(x, call.input, parts.form, 1, call.shape[1])
        if codes.scale.shape[1] > 1:
            return None
        return integer_product(call, parts, codes, stored, bias)


def takes_integers(matrix: StoredMatrix, weight: Weight) -> bool:
    """Whether torch's product of bytes takes a weight: its bytes are codes, and scales are those of rows."""
    by_row = matrix.scale is None or matrix.scale.sharing.by_row
    sized = matrix.rows % _MULTIPLE == 0 and matrix.columns % _MULTIPLE == 0
    return matrix.bits == 8 and not weight.levels and matrix.zero is None and by_row and sized


def integer_product(
    call: Call, parts: Parts, codes: Codes, stored: Mapping[str, Tensor], bias: Tensor | None
) -> Tensor:
    """The product by torch, and scales in one more kernel. For the time of the call there is a second copy of
    the codes, whose sign is where torch wants it."""
    from .int8_linear_triton import finish  # imports Triton

    matrix, weight = parts.matrix, parts.weight
    signed = (stored[CARRY] ^ 128).view(torch.int8)
    x = codes.codes.flatten(1)
    sums = torch._int_mm(x, signed.t())
    rows, columns = sums.shape
    out = torch.empty(rows, columns, dtype=torch.float32 if interpreted() else call.dtype, device=x.device)
    known = arguments(matrix, stored)
    of_scale = {
        name: known[name]
        for name in ("scale", "scale_table", "factor", "unit", "share_rows", "SCALE", "FACTOR")
    }
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        finish[(-(-rows // _BLOCK_M), -(-columns // _BLOCK_N))](
            sums=sums,
            x_sums=x.sum(1, dtype=torch.int32) if weight.shift else sums,
            x_scale=codes.scale,
            row_sums=row_sums(call, stored) if parts.form.half else sums,
            bias=sums if bias is None else bias.contiguous(),
            out=out,
            M=rows,
            N=columns,
            shift=weight.shift,
            multiplier=weight.multiplier,
            SHIFTED=weight.shift != 0,
            HALF=parts.form.half > 0,
            HAS_BIAS=bias is not None,
            ACTIVATION=call.activation,
            BLOCK_M=_BLOCK_M,
            BLOCK_N=_BLOCK_N,
            **of_scale,
        )
    return out.to(call.dtype)
