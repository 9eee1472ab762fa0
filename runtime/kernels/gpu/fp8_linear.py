"""Inputs on e4m3 numbers times weights on e4m3 numbers, by tensor cores: y = enter(x) W^T + b.

One kernel rotates, measures and rounds the input, one multiplies. Weights are e4m3 codes, or any whose levels
are e4m3 numbers (e2m1, integers up to four bits), looked up. Sums are scaled by rows, groups or blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...stage import CARRY
from ..base import Call
from ..neighbours import ACTIVATIONS
from .coded_launch import Multiplied, float8_form
from .coded_linear import CodedLinear, Parts
from .quantize_input import quantize_input

_MANY, _MULTIPLE, _HOPPER = 128, 16, (9, 0)


class Fp8Linear(CodedLinear):
    """Inputs and weights as e4m3 codes; many rows under scales of rows go through cuBLAS on Hopper."""

    name: ClassVar[str] = "gpu_fp8_linear"
    operation: ClassVar[str] = "input_linear"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    float8: ClassVar[bool] = True

    def multiplied(self, device: torch.device) -> Multiplied:
        return float8_form(device)

    def by_torch(
        self, call: Call, parts: Parts, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor | None:
        if not _takes(call, parts, x):
            return None
        codes = quantize_input(x, call.input, parts.form, 1, call.shape[1])
        if codes.scale.shape[1] > 1:
            return None
        weight = stored[CARRY].view(torch.float8_e4m3fn)
        scale = parts.matrix.scales(stored).expand(call.shape[0], 1)
        result = torch._scaled_mm(
            codes.codes.flatten(1).view(torch.float8_e4m3fn),
            weight.t(),
            scale_a=codes.scale,
            scale_b=scale.t().contiguous(),
            bias=bias,
            out_dtype=call.dtype,
        )
        return ACTIVATIONS[call.activation](result) if call.activation else result


def _takes(call: Call, parts: Parts, x: Tensor) -> bool:
    """Whether torch's product takes scales of rows here: on Hopper or later, to bfloat16."""
    if x.device.type != "cuda" or call.dtype != torch.bfloat16 or len(x) < _MANY:
        return False
    matrix = parts.matrix
    sized = matrix.rows % _MULTIPLE == 0 and matrix.columns % _MULTIPLE == 0
    by_row = matrix.scale is not None and matrix.scale.sharing.by_row
    own = matrix.bits == 8 and not parts.weight.levels
    return own and by_row and sized and torch.cuda.get_device_capability(x.device) >= _HOPPER
