"""Weight-only linear in bfloat16 on a CPU through torch's own operators for 4- and 8-bit integer weights.

They read the weight once, unpack it in registers and beat the dense product for a few rows; above `_ROWS`
they lose to decoding, which is then done instead. Both need another layout than the packed one (`prepare`),
and neither knows grids with halves: (k + 1/2) s is k s plus a zero of s / 2 for the 4-bit operator, and plus
sum(x) s / 2 for the 8-bit one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...stages.grids import IntegerGrid
from ...stages.quantize import Quantize
from ..base import Call, Kernel
from ..fixed_weight import with_gradient

_ROWS = 32  # where decoding catches up, measured on weights of 1024 x 1024 with AVX-512
_GROUPS = (256, 128, 64, 32)  # what the 4-bit operator takes
_SCALE, _WORDS, _AFFINE = "0.scale", "cpu.words", "cpu.scale_and_zero"


def reference(call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """What the kernel computes, in torch: decode the weight, then the dense product."""
    return F.linear(x, _decoded(call, stored), bias)


def _decoded(call: Call, stored: Mapping[str, Tensor]) -> Tensor:
    return call.representation.decode(call.representation.unpack(stored, call.shape, call.dtype))


def _product(call: Call, x: Tensor, fields: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """The operator on prepared fields; what it leaves to do is done in float32."""
    quantize = _quantize(call)
    rows = x.reshape(-1, call.shape[1]).contiguous()
    words = fields[_WORDS]
    if quantize.num_bits == 4:
        group = quantize.group_size or _group(call.shape[1])
        result = torch._weight_int4pack_mm_for_cpu(rows, words, group, fields[_AFFINE]).float()
    else:
        result = torch._weight_int8pack_mm(rows, words, rows.new_ones(call.shape[0])).float()
        result += rows.sum(-1, keepdim=True, dtype=torch.float32) * _middle(quantize)
    if quantize.group_size is None:
        result *= fields[_SCALE]
    if bias is not None:
        result += bias
    return result.to(x.dtype).reshape(*x.shape[:-1], call.shape[0])


def _middle(quantize: Quantize) -> float:
    """The value of the code in the middle, 2^(b-1), which the operators take for zero: 0, 1/2 or 1."""
    return quantize.levels.levels[0] + (1 << (quantize.num_bits - 1))


def _group(size: int) -> int:
    """The largest group of the 4-bit operator that divides a row; 0 when none does."""
    return next((group for group in _GROUPS if size % group == 0), 0)


class CpuIntLinear(Kernel):
    """One integer grid of 4 or 8 bits, bfloat16 inputs, on a CPU with AVX2 or AVX-512."""

    name: ClassVar[str] = "cpu_int_linear"
    copies: ClassVar[bool] = True
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    operation: ClassVar[str] = "linear"

    def refuse(self, call: Call) -> str | None:
        if call.dtype != torch.bfloat16:
            return f"inputs are {str(call.dtype).removeprefix('torch.')}, not bfloat16"
        capability = torch.backends.cpu.get_cpu_capability()
        if not capability.startswith("AVX"):
            return f"this processor's instructions are {capability}, not AVX2 or AVX-512"
        return _refuse_weight(call)

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        quantize = _quantize(call)
        codes = call.representation.unpack(stored, call.shape, call.dtype).carry
        if quantize.num_bits == 8:
            return {**stored, _WORDS: (codes ^ 0x80).view(torch.int8)}
        words = torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        if quantize.group_size is None:  # the scale of a row is left to the end, where it is not rounded
            scale = torch.ones(call.shape[1] // _group(call.shape[1]), call.shape[0])
        else:
            scale = stored[_SCALE].float().t()
        affine = torch.stack((scale, scale * _middle(quantize)), -1)
        return {**stored, _WORDS: words, _AFFINE: affine.to(torch.bfloat16).contiguous()}

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        if _WORDS not in stored or not 0 < x.numel() <= _ROWS * call.shape[1]:
            return reference(call, x, stored, bias)
        return with_gradient(
            lambda x, bias: _product(call, x, stored, bias), lambda: _decoded(call, stored), x, bias
        )


def _refuse_weight(call: Call) -> str | None:
    """Why a weight stored like this is not taken."""
    quantize = integer_matrix(call)
    if isinstance(quantize, str):
        return quantize
    if quantize.num_bits not in (4, 8):
        return f"torch has no operator for {quantize.num_bits}-bit codes"
    if quantize.group_size is not None and (quantize.num_bits == 8 or quantize.group_size not in _GROUPS):
        return f"torch's {quantize.num_bits}-bit operator has no groups of {quantize.group_size}"
    if call.shape[1] % 32:  # the 8-bit operator reads past the end of other rows
        return f"rows of {call.shape[1]} are not a multiple of 32"
    if quantize.num_bits == 4 and call.shape[0] % 16:
        return f"torch's 4-bit operator needs a multiple of 16 outputs, not {call.shape[0]}"
    return None


def _quantize(call: Call) -> Quantize:
    (stage,) = call.representation.stages
    assert isinstance(stage, Quantize)
    return stage


def integer_matrix(call: Call) -> Quantize | str:
    """The one stage of a matrix stored on an integer grid, or why the weight is none."""
    stages = call.representation.stages
    if len(stages) != 1 or not isinstance(stages[0], Quantize):
        return f"{call.representation} is not one quantize stage"
    if not isinstance(stages[0].levels, IntegerGrid):
        return f"{stages[0]} has no integer grid"
    if len(call.shape) != 2 or 0 in call.shape:
        return f"the weight has shape {list(call.shape)}, not a matrix's"
    return _refuse_scales(stages[0], call.shape[1]) or stages[0]


def _refuse_scales(quantize: Quantize, columns: int) -> str | None:
    """Why scales are none of those that integer kernels know: one per tensor, row or whole group."""
    if not quantize.symmetric or quantize.offset is not None:
        return f"{quantize} has zero points"
    if quantize.block_structure is not None:
        return f"{quantize} shares scales by blocks"
    if not quantize.plain_scales:
        return f"{quantize} stores scales that must be decoded first"
    if quantize.group_size is not None and columns % quantize.group_size:
        return f"the last group of {columns} is shorter than {quantize.group_size}"
    return None
