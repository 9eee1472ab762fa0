"""Launches of the product of coded inputs with a packed weight: tiles, parts of K, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor

from ...interpreted import interpreted
from ..neighbours import ACTIVATIONS
from ..stored import StoredMatrix
from .coded_weight import Weight
from .quantize_input import Codes
from .stored_fields import arguments, table_of, whole_rows

Multiplied = Literal["int8", "float8", "half", "float"]
"""What tensor cores multiply; `half` stands in for `float8` where they do not know that."""

_HALF = 65536.0  # two factors of 256, of e4m3 numbers as float16
_SHORTEST, _FEW, _SOME = 32, 32, 64
_FLOAT8 = (8, 9)  # compute capability


@dataclass(frozen=True)
class Cut:
    """How a product is cut into programs: tiles in rows, columns and K, parts of K, warps, stages."""

    block_m: int
    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int = 3


@dataclass(frozen=True)
class Given:
    """Operands beside the weight: rows `[m, ...]` as they are stored, their scales, and what comes after.

    `offsets` int32 say where the rows of each expert end; `sums` are those of rows of the weight.
    """

    rows: Tensor
    x_row: int
    x_plane: int
    dtype: torch.dtype
    form: Multiplied
    codes: Codes | None = None
    bias: Tensor | None = None
    activation: str = ""
    offsets: Tensor | None = None
    sums: Tensor | None = None


def block_group(matrix: StoredMatrix, x_group: int) -> int:
    """How many neighbours of a row share all scales; all where scales are those of rows."""
    share = matrix.scale.sharing if matrix.scale is not None else None
    of_weight = share.columns if share is not None and not share.by_row else 0
    of_input = x_group if x_group < matrix.columns else 0
    return gcd(of_weight, of_input) or matrix.columns


def plane_of(matrix: StoredMatrix, weight: Weight) -> int:
    """Bytes between planes of coded inputs: those of a packed row, aligned."""
    size = -(-matrix.columns // weight.per)
    return -(-size // 16) * 16


def cut_for(
    rows: int, columns: int, size: int, group: int, per: int, processors: int, least: int | None = None
) -> Cut:
    """The cut for that many rows, outputs and numbers in a row; blocks of K are of `least` at the least."""
    if rows <= _FEW:
        m, n, bytes_each, warps = (16 if rows <= 16 else 32), 64, 128, 4
    elif rows <= _SOME:
        m, n, bytes_each, warps = 64, 64, 128, 4
    else:
        m, n, bytes_each, warps = 64 if group < size else 128, 128, 64, 8
    k = bytes_each * per
    if group < size:
        k = min(k, group & -group)
    k = max(min(k, _power(size)), _SHORTEST * per if least is None else least)
    tiles, blocks = -(-rows // m) * -(-columns // n), -(-size // k)
    programs = 2 * processors if rows <= _SOME else processors
    return Cut(m, n, k, max(1, min(programs // tiles, blocks // 4)), warps)


def product(
    matrix: StoredMatrix, weight: Weight, stored: Mapping[str, Tensor], given: Given, cut: Cut
) -> Tensor:
    """out `[m, n]` of the tiled kernel."""
    from .int8_linear_triton import product as kernel  # imports Triton

    experts = 0 if given.offsets is None else len(given.offsets)
    count, columns = given.rows.shape[0], matrix.rows // max(experts, 1)
    words = whole_rows(matrix, stored)
    group = block_group(matrix, matrix.columns if given.codes is None else given.codes.group)
    own = _own(matrix, weight, stored, given, cut.splits)
    blocks = -(-matrix.columns // cut.block_k)
    table = given.rows.dtype if given.codes is None else given.codes.codes.dtype
    out = _out(given, cut.splits, count, columns)
    tiles = -(-count // cut.block_m) + experts
    with torch.cuda.device_of(given.rows):  # type: ignore[no-untyped-call]
        kernel[(tiles, -(-columns // cut.block_n), cut.splits)](
            x=given.rows,
            words=words,
            levels=table_of(weight.levels, words.device, table) if weight.levels else words,
            offsets=words if given.offsets is None else given.offsets,
            out=out,
            M=count,
            N=columns,
            K=matrix.columns,
            x_row=given.x_row,
            x_plane=given.x_plane,
            row_bytes=words.shape[1],
            blocks_each=-(-blocks // cut.splits),
            FORM=given.form,
            TABLE=bool(weight.levels),
            GROUPED=group < matrix.columns,
            EXPERTS=experts,
            EXPERTS_UP=_power(max(experts, 1)),
            EVEN=matrix.columns % cut.block_k == 0,
            BLOCK_M=cut.block_m,
            BLOCK_N=cut.block_n,
            BLOCK_K=cut.block_k,
            num_warps=cut.warps,
            num_stages=cut.stages,
            **own,
        )
    return _finished(out, given)


def takes_one_row(matrix: StoredMatrix, weight: Weight, given: Given) -> bool:
    """Whether a single row of int8 inputs can be read in words of 32 bits."""
    if given.rows.shape[0] != 1 or given.form != "int8" or weight.levels:
        return False
    words = 4 * weight.per
    group = block_group(matrix, matrix.columns if given.codes is None else given.codes.group)
    return matrix.columns % words == 0 and (group == matrix.columns or group % words == 0)


def one_row(
    matrix: StoredMatrix,
    weight: Weight,
    stored: Mapping[str, Tensor],
    given: Given,
    block_n: int = 16,
    block_w: int = 128,
) -> Tensor:
    """out `[1, n]` of the kernel for a single row."""
    from .int8_row_triton import one_row as kernel  # imports Triton

    assert given.codes is not None
    words = whole_rows(matrix, stored).view(torch.int32)
    row_words, each = words.shape[1], 4 * weight.per
    block_w = max(32, min(block_w, _power(row_words)))
    blocks, tiles = -(-row_words // block_w), -(-matrix.rows // block_n)
    splits = max(1, min(4 * processors(words.device) // tiles, blocks // 2))
    own = _own(matrix, weight, stored, given, splits)
    group = block_group(matrix, given.codes.group)
    for name in ("share_columns", "x_group", "x_groups"):
        own.pop(name)
    share = matrix.scale.sharing.columns if matrix.scale is not None else matrix.columns
    out = _out(given, splits, 1, matrix.rows)
    with torch.cuda.device_of(words):  # type: ignore[no-untyped-call]
        kernel[(tiles, splits)](
            x=given.rows.view(torch.int32),
            words=words,
            out=out,
            N=matrix.rows,
            x_plane=given.x_plane // 4,
            group_words=max(1, share // each),
            x_group_words=max(1, given.codes.group // each),
            row_words=row_words,
            blocks_each=-(-blocks // splits),
            GROUPED=group < matrix.columns,
            QUAD=4 if group < matrix.columns and group % (4 * each) == 0 else 1,
            EVEN=row_words % block_w == 0,
            BLOCK_N=block_n,
            BLOCK_W=block_w,
            num_warps=4,
            num_stages=3,
            **own,
        )
    return _finished(out, given)


def _own(
    matrix: StoredMatrix, weight: Weight, stored: Mapping[str, Tensor], given: Given, splits: int
) -> dict[str, Any]:
    """What both kernels are told."""
    codes, whole = given.codes, splits == 1
    bias = given.bias if whole else None
    times = _HALF if given.form == "half" else 1.0
    groups = 1 if codes is None else codes.scale.shape[1]
    return {
        **arguments(matrix, stored),
        "x_scale": given.rows if codes is None else codes.scale,
        "row_sums": given.rows if given.sums is None else given.sums,
        "bias": given.rows if bias is None else bias.contiguous().view(-1),
        "x_group": matrix.columns if codes is None else codes.group,
        "x_groups": groups,
        "shift": weight.shift,
        "zero_times": weight.zero_times,
        "multiplier": weight.multiplier * times,
        "BITS": matrix.bits,
        "PER": weight.per,
        "SHIFTED": weight.shift != 0 or matrix.zero is not None,
        "X_GROUPED": groups > 1,
        "HALF": given.sums is not None,
        "HAS_BIAS": bias is not None,
        "ACTIVATION": given.activation if whole else "",
        "PLAIN": interpreted(),
    }


def _out(given: Given, splits: int, count: int, columns: int) -> Tensor:
    """Room for the parts. The interpreter cuts float32 off instead of rounding to bfloat16: torch does it."""
    dtype = torch.float32 if splits > 1 or interpreted() else given.dtype
    make = torch.empty if given.offsets is None else torch.zeros
    return make((splits, count, columns), dtype=dtype, device=given.rows.device)


def _finished(out: Tensor, given: Given) -> Tensor:
    if len(out) == 1:
        return out[0].to(given.dtype)
    result = out.sum(0)
    if given.bias is not None:
        result += given.bias
    return (ACTIVATIONS[given.activation](result) if given.activation else result).to(given.dtype)


def float8_form(device: torch.device) -> Multiplied:
    """How e4m3 numbers are multiplied on a device."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _FLOAT8:
        return "half"
    return "float8"


@lru_cache(maxsize=8)
def processors(device: torch.device) -> int:
    """The multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _power(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
