"""Launches of the device code of the weight-only linear. Importing this imports Triton.

The interpreter multiplies the bit patterns of bfloat16, cuts float32 off instead of rounding to it, and knows
no machine text: there kernels see float32 from loads to stores, and tables of numbers (`PLAIN`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...interpreted import interpreted
from ...stage import CARRY
from ..stored import StoredMatrix
from . import decode_triton, elements_triton, linear_triton
from .code_kinds import BFLOAT16, Codes, Line, Operand, Table
from .linear_autotune import tuned_few
from .linear_plan import Few, Format, Tile, autotuned, batch, registers
from .linear_plan import few as few_plan
from .linear_plan import tile as tile_plan
from .reading import LEVELS, OPERANDS, Reading, aligned_words, codes_of, reading, tables, tensors
from .sides_triton import side
from .unpacking import Unpacking, neighbours, unpacking

_NUMBERS = 4096  # of a weight that a program decodes
_BY_GROUPS_OF_WARPS = 90  # the capability from which on tiles are multiplied so
_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def few(
    matrix: StoredMatrix,
    rows: Tensor,
    stored: Mapping[str, Tensor],
    bias: Tensor | None,
    activation: str,
    plan: Few | None = None,
) -> Tensor | None:
    """The product with up to 16 rows `[M, K]`, or None where the codes are not made of units."""
    found = units(matrix, rows.dtype, stored)
    if found is None:
        return None
    read, codes, words = found
    weight = few_format(codes, read)
    plan = plan or few_plan(len(rows), (matrix.rows, matrix.columns), weight, _processors(rows))
    constants = few_constants(codes, OPERANDS[rows.dtype], read, weight.per_unit, plain=interpreted())
    unit = float(constants.pop("unit"))
    if autotuned() and not interpreted():
        plan = replace(plan, parts=1)
        kernel, grid, block = tuned_few(plan.block_k, matrix.rows)
        part_blocks = matrix.columns  # all of them, however wide
        sizes = {name: few_sizes(plan, len(rows))[name] for name in ("BLOCK_M", "BLOCK_X", "BLOCK_K")}
    else:
        kernel, grid = linear_triton.few, (-(-matrix.rows // plan.block_n), plan.parts)
        block = plan.batches * plan.block_k
        part_blocks = -(-matrix.columns // (block * plan.parts))
        sizes = few_sizes(plan, len(rows)) | few_options(plan)
    parts = plan.parts > 1
    dtype = torch.float32 if parts or interpreted() else rows.dtype
    out = torch.empty((plan.parts, len(rows), matrix.rows), dtype=dtype, device=rows.device)
    scales, scale_table, zeros, factor = tensors(matrix, stored)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        kernel[grid](
            rows, words, scales, scale_table, zeros, _numbers(codes, stored, matrix, weight.per_unit, rows),
            rows if bias is None else bias, factor, out, read.multiplier * unit,
            len(rows), matrix.rows, matrix.columns, rows.stride(0), words.shape[1],
            read.scale_row, read.scale_rows, read.zero_row, part_blocks,
            HAS_BIAS=bias is not None and not parts, ACTIVATION="" if parts else activation,
            EVEN=matrix.columns % block == 0, **constants, **sizes, enable_fp_fusion=True,
        )  # fmt: skip
        if not parts:
            return out[0].to(rows.dtype)
        result = torch.empty(
            out.shape[1:], dtype=torch.float32 if interpreted() else rows.dtype, device=rows.device
        )
        linear_triton.finish[(-(-result.numel() // 256),)](
            out, rows if bias is None else bias, result, plan.parts, len(rows), matrix.rows,
            HAS_BIAS=bias is not None, ACTIVATION=activation, BLOCK=256, enable_fp_fusion=True,
        )  # fmt: skip
    return result.to(rows.dtype)


def few_format(codes: Codes, read: Reading) -> Format:
    """What sizes for few rows depend on."""
    per_unit = bool(read.columns) and not batch(codes.bits, read.columns)
    looked_up = isinstance(codes, Table) and codes.bits == 4
    return Format(codes.bits, read.columns, per_unit, read.zero_bits >= 0, looked_up)


def tile_format(codes: Codes, read: Reading) -> Format:
    """What sizes for more rows depend on."""
    return Format(codes.bits, read.columns, own_zeros=read.zero_bits >= 0)


def few_constants(
    codes: Codes, operand: Operand, read: Reading, per_unit: bool, plain: bool
) -> dict[str, Any]:
    """The constants of `linear_triton.few` that follow from a format; `unit` of numbers is one of them."""
    own_zero = isinstance(codes, Line) and codes.zero is None
    made, lanes = unpacking(codes, operand, exact=per_unit, scaled=per_unit), "words"
    if not per_unit:
        beside = neighbours(codes, operand)
        if beside is not None:
            made, lanes = beside, "neighbours"
        elif made.words == 1:
            made, lanes = unpacking(codes, operand, exact=False, together=True), "halves"
    constants = _constants(codes, made, read, plain)
    zero = codes.zero or 0.0 if isinstance(codes, Line) and not per_unit else 0.0
    base, less = "", zero
    if not plain and not per_unit:
        if made.offset is not None:
            less = made.offset + zero
        elif not own_zero and all(operand.holds(offset + zero) for offset in made.offsets):
            base, less = made.constants(operand, zero), 0.0
        else:
            base = made.constants(operand, 0.0)
    by_bytes = per_unit and (read.scale != "float" or read.zero_bits > 0)
    return constants | {
        "BASE": base, "LESS": less, "PER_UNIT": per_unit, "LANES": lanes, "SIDE": side(by_bytes)
    }  # fmt: skip


def few_sizes(plan: Few, rows: int) -> dict[str, int]:
    """The constants of `linear_triton.few` that follow from a plan."""
    return {
        "BATCHES": plan.batches,
        "BLOCK_N": plan.block_n,
        "BLOCK_M": plan.block_m,
        "BLOCK_X": 1 if rows == 1 else plan.block_m,
        "BLOCK_K": plan.block_k,
        "STAGES": plan.stages,
    }


def few_options(plan: Few) -> dict[str, int]:
    """What Triton is told besides constants."""
    return {"num_warps": plan.warps, "num_stages": plan.stages, "maxnreg": registers(plan.warps)}


def tiles(
    matrix: StoredMatrix,
    rows: Tensor,
    stored: Mapping[str, Tensor],
    bias: Tensor | None,
    activation: str,
    plan: Tile | None = None,
) -> Tensor | None:
    """The product with any number of rows `[M, K]`, or None where the codes are not made of units."""
    found = units(matrix, rows.dtype, stored)
    if found is None:
        return None
    read, codes, words = found
    capability = _capability(rows)
    plan = plan or tile_plan(len(rows), tile_format(codes, read), capability)
    constants = tile_constants(
        codes, OPERANDS[rows.dtype], read, plan.block_k, capability, plain=interpreted()
    )
    unit = float(constants.pop("unit"))
    dtype = torch.float32 if interpreted() else rows.dtype
    out = torch.empty((len(rows), matrix.rows), dtype=dtype, device=rows.device)
    scales, scale_table, zeros, factor = tensors(matrix, stored)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        linear_triton.tile[(-(-len(rows) // plan.block_m), -(-matrix.rows // plan.block_n))](
            rows, words, scales, scale_table, zeros, _numbers(codes, stored, matrix, True, rows),
            rows if bias is None else bias, factor, out, read.multiplier * unit,
            len(rows), matrix.rows, matrix.columns, rows.stride(0), words.shape[1],
            read.scale_row, read.scale_rows, read.zero_row,
            HAS_BIAS=bias is not None, ACTIVATION=activation, EVEN=matrix.columns % plan.block_k == 0,
            **constants, **tile_sizes(plan), **tile_options(plan), enable_fp_fusion=True,
        )  # fmt: skip
    return out.to(rows.dtype)


def tile_constants(
    codes: Codes, operand: Operand, read: Reading, block_k: int, capability: int, plain: bool
) -> dict[str, Any]:
    """The constants of `linear_triton.tile` that follow from a format; `unit` of numbers is one of them.

    From capability 90 on, whole groups of warps multiply, and threads have pairs as the hardware says.
    """
    per_unit = bool(read.columns) and read.columns % block_k != 0
    if not per_unit:
        codes = _as_codes(codes)
    made = unpacking(codes, operand, exact=True, scaled=per_unit)
    pairs = side(False) if capability < _BY_GROUPS_OF_WARPS else 1
    return _constants(codes, made, read, plain) | {"PER_UNIT": per_unit, "SIDE": pairs}


def _as_codes(codes: Codes) -> Codes:
    """The same with codes themselves as numbers where zero points are given."""
    return Line(codes.bits, 0.0) if isinstance(codes, Line) and codes.zero is None else codes


def tile_sizes(plan: Tile) -> dict[str, int]:
    """The constants of `linear_triton.tile` that follow from a plan."""
    return {
        "BLOCK_N": plan.block_n,
        "BLOCK_M": plan.block_m,
        "BLOCK_K": plan.block_k,
        "STAGES": plan.stages,
    }


def tile_options(plan: Tile) -> dict[str, int]:
    """What Triton is told besides constants."""
    limit = registers(plan.warps, tiled=True)
    return {"num_warps": plan.warps, "num_stages": plan.stages, "maxnreg": limit}


def by_elements(
    matrix: StoredMatrix, rows: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None, activation: str
) -> Tensor:
    """The product number by number, for every matrix and every dtype."""
    read = _reading(matrix, stored)
    wide = rows.dtype == torch.float32 or interpreted()
    out = torch.empty(
        (len(rows), matrix.rows), dtype=torch.float32 if wide else rows.dtype, device=rows.device
    )
    scales, scale_table, zeros, factor = tensors(matrix, stored)
    codes = stored[CARRY].contiguous()
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        elements_triton.linear[(-(-len(rows) // 16), -(-matrix.rows // 32))](
            rows, codes, scales, scale_table, zeros, stored[LEVELS],
            rows if bias is None else bias, factor, out, read.multiplier,
            len(rows), matrix.rows, matrix.columns, rows.stride(0),
            codes.shape[-1], read.scale_row, read.scale_rows, read.zero_row,
            BITS=matrix.bits, FIRST=read.first, STEP=read.step, **read.constants(), HAS_BIAS=bias is not None,
            ACTIVATION=activation, FLOAT32=wide, BLOCK_N=32, BLOCK_M=16, BLOCK_K=64, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return out.to(rows.dtype)


def decoded(matrix: StoredMatrix, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The dense weight `[N, K]`, each number rounded once."""
    read = _reading(matrix, stored)
    codes, words = codes_of(matrix, OPERANDS.get(dtype, BFLOAT16)), aligned_words(matrix, stored)
    out = torch.empty(
        (matrix.rows, matrix.columns),
        dtype=torch.float32 if interpreted() else dtype,
        device=stored[CARRY].device,
    )
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        if dtype in OPERANDS and codes is not None and words is not None and _whole_units(codes, read):
            _decode_units(matrix, stored, codes, words, out, OPERANDS[dtype])
        else:
            _decode_elements(matrix, stored, out)
    return out.to(dtype)


def _decode_units(
    matrix: StoredMatrix,
    stored: Mapping[str, Tensor],
    codes: Codes,
    words: Tensor,
    out: Tensor,
    operand: Operand,
) -> None:
    read = _reading(matrix, stored)
    codes = _as_codes(codes)
    made = unpacking(codes, operand, exact=True)
    constants = _constants(codes, made, read, interpreted())
    unit = float(constants.pop("unit"))
    count = 2 * made.pairs
    wide = min(256 // count, triton.next_power_of_2(-(-matrix.columns // count)))
    high = _NUMBERS // (wide * count)
    scales, scale_table, zeros, factor = tensors(matrix, stored)
    grid = (-(-matrix.rows // high), -(-matrix.columns // (wide * count)))
    decode_triton.decode_units[grid](
        words, scales, scale_table, zeros, _numbers(codes, stored, matrix, True, out), factor, out,
        read.multiplier * unit, matrix.rows, matrix.columns, words.shape[1],
        read.scale_row, read.scale_rows, read.zero_row,
        OPERAND=_TYPES[operand.dtype], BLOCK_N=high, UNITS=wide, **constants, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip


def _decode_elements(matrix: StoredMatrix, stored: Mapping[str, Tensor], out: Tensor) -> None:
    read = _reading(matrix, stored)
    codes = stored[CARRY].contiguous()
    scales, scale_table, zeros, factor = tensors(matrix, stored)
    wide = min(256, triton.next_power_of_2(matrix.columns))
    high = _NUMBERS // wide
    elements_triton.decode[(-(-matrix.rows // high), -(-matrix.columns // wide))](
        codes, scales, scale_table, zeros, stored[LEVELS], factor, out, read.multiplier,
        matrix.rows, matrix.columns, codes.shape[-1], read.scale_row, read.scale_rows, read.zero_row,
        BITS=matrix.bits, FIRST=read.first, STEP=read.step, **read.constants(),
        BLOCK_N=high, BLOCK_K=wide, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def units(
    matrix: StoredMatrix, dtype: torch.dtype, stored: Mapping[str, Tensor]
) -> tuple[Reading, Codes, Tensor] | None:
    """The reading, the codes and the words, where codes are made of units that lie in one group each."""
    operand, words = OPERANDS.get(dtype), aligned_words(matrix, stored)
    codes = None if operand is None else codes_of(matrix, operand)
    read = _reading(matrix, stored)
    if codes is None or words is None or not _whole_units(codes, read):
        return None
    return read, codes, words


def _whole_units(codes: Codes, read: Reading) -> bool:
    return read.columns % (2 * unpacking(codes, BFLOAT16, exact=False).pairs) == 0


def _reading(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> Reading:
    return reading(matrix, matrix.scale is not None and stored[matrix.scale.name].ndim == 1)


def _constants(codes: Codes, made: Unpacking, read: Reading, plain: bool) -> dict[str, Any]:
    return read.constants() | {
        "BITS": codes.bits,
        "WORDS": made.words,
        "PAIRS": made.pairs,
        "TEXT": "" if plain else made.text,
        "CONSTRAINTS": "" if plain else made.constraints,
        "PLAIN": plain,
        "unit": (1.0 if plain else made.unit) * (read.step if isinstance(codes, Line) else 1.0),
    }


def _numbers(
    codes: Codes, stored: Mapping[str, Tensor], matrix: StoredMatrix, exact: bool, like: Tensor
) -> Tensor:
    """What codes are where there is no machine text: levels, or codes, less their zero where `exact`."""
    if not interpreted():
        return stored[CARRY]
    if not isinstance(codes, Line):
        return tables(matrix, like.device)[LEVELS]
    less = (codes.zero or 0.0) if exact else 0.0
    return torch.arange(1 << codes.bits, dtype=torch.float32, device=like.device) - less


def _capability(x: Tensor) -> int:
    if not x.is_cuda:
        return 0
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
