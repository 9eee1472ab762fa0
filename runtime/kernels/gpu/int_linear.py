"""Weight-only linear on packed integer codes: y = x R^T + b without the dense R, one Triton kernel for CUDA.

Codes are unpacked in registers to the exact values of the grid (k or k + 1/2, at most 8 significant bits),
multiplied in the input's own dtype, added up in float32 and scaled once per row or group. Up to 16 rows,
where reading the weight takes all the time, tiles are 16 rows high and K is split until every multiprocessor
has work; above, tiles are ordinary ones. Tiles (`Plan`) were chosen by machine instructions per weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interpreted import interpreted
from ...stage import CARRY
from ...stages.grids import IntegerGrid
from ...stages.quantize import Quantize
from ..base import Call, Kernel
from ..fixed_weight import with_gradient

_BITS = (1, 2, 4, 8)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_GROUP = 32  # the smallest block of K that the tensor cores and 32-bit words are fed well with
_SCALE = "0.scale"


def reference(call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """What the kernel computes, in torch: decode the weight, then the dense product."""
    return F.linear(x, _decoded(call, stored), bias)


def _decoded(call: Call, stored: Mapping[str, Tensor]) -> Tensor:
    return call.representation.decode(call.representation.unpack(stored, call.shape, call.dtype))


@dataclass(frozen=True)
class Plan:
    """How a call is cut into programs: tiles in rows, columns and K, parts of K, warps, pipeline stages."""

    block_m: int
    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int = 3


def plan(rows: int, shape: tuple[int, ...], group: int | None, dtype: torch.dtype, processors: int) -> Plan:
    """The plan for `rows` inputs and a weight `[N, K]` on a device with that many multiprocessors."""
    if dtype == torch.float32:
        m, n, k, warps = (16, 64, 32, 4) if rows <= 16 else (32, 32, 32, 4)
    elif rows <= 32:
        m, n, k, warps = (16 if rows <= 16 else 32), 64, 128, 4
    else:
        m, n, k, warps = 64, 128, 64, 8
    if group is not None:
        k = min(k, group & -group)  # the largest power of two that divides the group
    tiles = -(-rows // m) * -(-shape[0] // n)
    blocks = -(-shape[1] // k)
    programs = 2 * processors if rows <= 32 else processors  # resident at once
    return Plan(m, n, k, max(1, min(programs // tiles, blocks // 4)), warps)


def launch(call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None, cut: Plan) -> Tensor:
    """Run the kernel on `x` `[..., K]` with a plan."""
    from .int_linear_triton import linear  # imports Triton

    quantize = _quantize(call)
    columns, size = call.shape
    rows = x.reshape(-1, size)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    count = rows.shape[0]
    words, per = _words(stored[CARRY], quantize.num_bits, cut.block_k)
    scale = stored[_SCALE].contiguous()
    parts = cut.splits > 1
    blocks = -(-size // cut.block_k)
    blocks_each = -(-blocks // cut.splits)
    # The interpreter multiplies the bit patterns of bfloat16 and cuts float32 off instead of rounding to it:
    # there the kernel sees float32 from its loads to its stores.
    wide = interpreted()
    out_dtype = torch.float32 if parts or wide else x.dtype
    out = torch.empty((cut.splits, count, columns), dtype=out_dtype, device=x.device)
    grid = (-(-count // cut.block_m), -(-columns // cut.block_n), cut.splits)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        linear[grid](
            rows,
            words,
            scale,
            rows if bias is None else bias.contiguous(),
            out,
            count,
            columns,
            size,
            rows.stride(0),
            words.shape[1],
            {"tensor": 0, "group": scale.shape[-1]}.get(quantize.strategy, 1),
            blocks_each,
            BITS=quantize.num_bits,
            PER=per,
            OFFSET=quantize.levels.levels[0],
            GROUP_BLOCKS=(quantize.group_size or 0) // cut.block_k,
            HAS_BIAS=bias is not None and not parts,
            EVEN_K=size % cut.block_k == 0,
            FLOAT32=x.dtype == torch.float32 or wide,
            BLOCK_M=cut.block_m,
            BLOCK_N=cut.block_n,
            BLOCK_K=cut.block_k,
            num_warps=cut.warps,
            num_stages=cut.stages,
            enable_fp_fusion=True,
        )
    result = out.sum(0) if parts else out[0]
    if parts and bias is not None:
        result += bias
    return result.to(x.dtype).reshape(*x.shape[:-1], columns)


def _words(packed: Tensor, bits: int, block_k: int) -> tuple[Tensor, int]:
    """The packed rows as 32-bit words, or bytes where words do not fit, and the codes in each."""
    packed = packed.contiguous()
    aligned = packed.shape[-1] % 4 == 0 and packed.data_ptr() % 4 == 0
    # With fewer than four words in a row of a tile the compiler moves every code through shared memory.
    if aligned and block_k * bits >= 128:
        return packed.view(torch.int32), 32 // bits
    return packed, 8 // bits


class IntLinear(Kernel):
    """One integer grid of 1, 2, 4 or 8 bits under a scale per tensor, channel or group, on CUDA."""

    name: ClassVar[str] = "int_linear"
    operation: ClassVar[str] = "linear"

    def refuse(self, call: Call) -> str | None:
        if find_spec("triton") is None:
            return "Triton is not installed"
        if call.device != "cuda" and not interpreted():
            return f"the device is {call.device}, and it needs cuda"
        if call.dtype not in _DTYPES:
            return f"inputs are {str(call.dtype).removeprefix('torch.')}, not float32, float16 or bfloat16"
        return _refuse_weight(call)

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        count = x.numel() // call.shape[1]
        if not count:
            return x.new_empty(*x.shape[:-1], call.shape[0])
        cut = plan(count, call.shape, _quantize(call).group_size, x.dtype, _processors(x.device))
        return with_gradient(
            lambda x, bias: launch(call, x, stored, bias, cut), lambda: _decoded(call, stored), x, bias
        )


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


def _refuse_weight(call: Call) -> str | None:
    """Why a weight stored like this is not taken."""
    quantize = integer_matrix(call)
    if isinstance(quantize, str):
        return quantize
    if quantize.num_bits not in _BITS:
        return f"{quantize.num_bits}-bit codes are not byte aligned"
    if quantize.group_size is not None and quantize.group_size % _GROUP:
        return f"group {quantize.group_size} is not a multiple of {_GROUP}"
    return None


def _quantize(call: Call) -> Quantize:
    (stage,) = call.representation.stages
    assert isinstance(stage, Quantize)
    return stage


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
