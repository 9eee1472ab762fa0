"""Hadamard rotations on CUDA: a norm before them, a projection after them, or alone; rows read once.

A block of up to 128 numbers is one product on the tensor cores, a longer one two: along lines of 128, and
across them. What is rotated is rounded once, as the stage rounds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...hadamard_matrices import sylvester
from ...interpreted import interpreted
from ...representation import Representation
from ...stages.hadamard import Hadamard
from ...training_kernels.plan import Plan, plan_of
from ...training_kernels.triton_cut import cut_of
from ...training_kernels.triton_launch import Given, projecting
from ..neighbours import Norm

_LINE, _SHORTEST = 128, 16
_TILE, _ROW = 1 << 13, 1 << 15  # numbers of a program: of a part of a row, of a whole row at most
_ACROSS = 64  # lines at most of a program that turns across them


@dataclass(frozen=True)
class Rows:
    """How rows of one length are cut: tiles of `lines` lines of `width`, `across` of which make a block.

    `segment` numbers in `shared` lines have one scale, `per_row` segments (also empty ones) make a row.
    """

    plan: Plan
    block: int
    width: int
    lines: int
    across: int
    segment: int
    shared: int
    groups: int
    per_row: int


def entering_plan(projection: Representation, rotation: Representation) -> Plan | str:
    """The plan of what `enter` does, or why no kernel does it at once."""
    if projection.is_dense:
        return rotation_plan(rotation)
    if projection.rotation != rotation:
        return f"numbers are rounded as {projection}, and then rotated by {rotation}"
    plan = plan_of(projection, ())
    if isinstance(plan, Plan) and plan.sharing == "tensor":
        return "all rows share a scale"
    return plan


def rotation_plan(rotation: Representation) -> Plan | str:
    """The plan of a rotation alone."""
    stages = rotation.stages
    if len(stages) != 1 or not isinstance(stages[0], Hadamard):
        return f"{rotation} is not one Hadamard rotation"
    stage = stages[0]
    if stage.signs == "fresh":
        return f"the signs of {stage} are drawn for every tensor"
    whole = stage.block == "full"
    block = 1 << 30 if stage.block == "full" else stage.block
    if block & (block - 1):
        return f"the block of {stage} is not a power of two"
    return Plan(block=block, whole=whole, signs=stage.signs)


@lru_cache(maxsize=512)
def rows_of(plan: Plan, size: int, whole_rows: bool) -> Rows | str:
    """The cut of rows `[size]`, or why there is none; `whole_rows`: a program has a whole row."""
    block = plan.block_for(size)
    if block & (block - 1):
        return f"Hadamard blocks of {block} are no power of two"
    if plan.block and block == 1:
        return f"rows of {size} cannot be rotated"
    inner = min(block, _LINE)
    inside = replace(plan, block=inner if block > 1 else 0, whole=False)
    cut = cut_of(inside, size)
    if isinstance(cut, str):
        return cut
    width, across = cut.width, block // inner
    if plan.sharing == "none" and not whole_rows:
        lines = max(_SHORTEST, across, min(_TILE // width, _power(-(-size // width))))
        per_row = -(-size // (lines * width))
        rows = Rows(inside, block, width, lines, across, lines * width, lines, 1, per_row)
    else:
        lines = max(_SHORTEST, _power(cut.per_row * cut.lines))
        segment, shared = (cut.segment, cut.lines) if plan.sharing != "none" else (lines * width, lines)
        rows = Rows(inside, block, width, lines, across, segment, shared, cut.groups, lines // shared)
    if lines * width > _ROW:
        return f"rows of {size} are longer than {_ROW}"
    if across > 1 and lines > _ACROSS:
        return f"Hadamard blocks of {block} in rows of {size} take more than {_ACROSS} lines of {width}"
    return rows


def enter_rows(
    x: Tensor,
    rows: Rows,
    norm: Norm | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`x` `[..., n]` under a norm, rotated and projected as the plan says; same shape and dtype."""
    from .norm_enter_triton import norm_enter  # imports Triton

    size = x.shape[-1]
    numbers = x.reshape(-1, size)
    numbers = numbers if numbers.stride(-1) == 1 else numbers.contiguous()
    count = len(numbers)
    # The interpreter cuts float32 off instead of rounding to bfloat16: there numbers are float32 outside.
    given = numbers.float() if interpreted() else numbers
    out = torch.empty(count, size, dtype=given.dtype, device=x.device)
    if not numbers.numel():
        return out.reshape(x.shape)
    own = {
        "weight": given if weight is None else weight.contiguous(),
        "bias": given if bias is None else bias.contiguous(),
        "outer": _outer(rows.lines, rows.across, x.device),
        "norm": 1 / math.sqrt(rows.block),
        "x_row": given.stride(0),
        "per_row": rows.per_row,
        "eps": 0.0 if norm is None else epsilon(norm),
        "NORM": "" if norm is None else norm.kind,
        "WEIGHT": weight is not None,
        "BIAS": bias is not None,
        "OUTER": rows.across > 1,
        "SEGMENT": rows.segment,
        "LINES": rows.shared,
        "GROUPS": rows.groups,
        "M": rows.lines,
        "num_warps": min(max(rows.lines * rows.width >> (9 if x.dtype == torch.float32 else 10), 4), 16),
    }
    known = {**projecting(rows.plan, Given.of(numbers), True, False).arguments, **own}
    options = ("num_warps", "num_stages", "enable_fp_fusion")
    wanted = {*norm_enter.arg_names, *options}
    arguments: dict[str, Any] = {name: value for name, value in known.items() if name in wanted}
    programs = count * rows.per_row * rows.shared // rows.lines
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        norm_enter[(programs,)](given, out, **arguments)
    return out.to(x.dtype).reshape(x.shape)


def epsilon(norm: Norm) -> float:
    """What is added under the root; torch's own choice is the spacing of what it computes in."""
    return torch.finfo(torch.float32).eps if norm.eps is None else norm.eps


@lru_cache(maxsize=64)
def _outer(lines: int, across: int, device: torch.device) -> Tensor:
    """Sylvester's matrix, not normalised, over `across` lines of each block `[lines, lines]`."""
    matrix = np.kron(np.eye(lines // across, dtype=np.int8), sylvester(across))
    with torch.inference_mode(False):
        return torch.from_numpy(matrix).to(device, torch.float32 if interpreted() else torch.bfloat16)


def _power(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
