"""What the kernels of the fused projection are told beside the tensors, worked out once for each shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hadamard_matrices import sylvester
from ..interpreted import interpreted
from ..stages.hadamard import fixed_signs
from ..stages.scales.storage import _range
from .plan import Plan
from .triton_cut import Cut, cut_of

TERMS = {torch.float32: 3, torch.float16: 2, torch.bfloat16: 1}
"""The dtypes that kernels take, and how many bfloat16 numbers add up to one of theirs."""

_MOST_TERMS = 3  # any float32
_MEASURING = 1024  # programs at most that measure a tensor
_RESIDENT_WARPS = 16  # on a multiprocessor, of programs that keep a matrix


@dataclass(frozen=True)
class Launch:
    """The programs of a kernel, and its arguments beside those that are new in every call."""

    programs: int
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Given:
    """What a tensor is like, as far as kernels depend on it."""

    rows: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> Given:
        return cls(x.numel() // x.shape[-1], x.shape[-1], x.dtype, x.device)


@lru_cache(maxsize=1024)
def measuring(plan: Plan, given: Given) -> Launch:
    """The launch of `triton_kernels.measure`."""
    cut = _cut(plan, given.size)
    shared = _shared(plan, given, cut) | _survivors(plan)
    return _launch(given, cut, _MEASURING, {**shared, "SEGMENT": cut.segment, "LINES": cut.lines})


@lru_cache(maxsize=1024)
def projecting(plan: Plan, given: Given, keep_rotated: bool, masks: bool) -> Launch:
    """The launch of `triton_kernels.project`."""
    cut, tensor = _cut(plan, given.size), plan.sharing == "tensor"
    scale_dtype = plan.scale_dtype if plan.scale_dtype != "own" else _name(given.dtype)
    least, most = _range(torch.float32 if scale_dtype == "e8m0" else getattr(torch, scale_dtype))
    table = plan.rounding == "table"
    arguments = {
        **_shared(plan, given, cut),
        **_survivors(plan),
        **_ends(plan),
        "table": _table(plan, given.device),
        "numbers_in_all": float(given.rows * given.size * (plan.kept or 1) // (plan.of or 1)),
        "multiplier": plan.multiplier,
        "divisor": plan.divisor,
        "border": plan.power_border,
        "offset": plan.power_offset,
        "scale_least": least,
        "scale_most": most,
        "unit": plan.unit,
        "shift": plan.shift,
        "least": plan.least,
        "fraction": 2.0**-plan.mantissa_bits,
        "half_width": plan.half_width,
        "trust": plan.trust,
        "top": plan.top,
        "bound": plan.bound,
        "FROM_BORDER": plan.power_from_border,
        "SCALE_DTYPE": scale_dtype,
        "ROUNDING": plan.rounding,
        "LEVELS": len(plan.levels) if table else 0,
        "TRUST": masks and plan.trust > 0,
        "BOUND": masks and plan.bound > 0,
        "BACK": cut.block > 1 and not keep_rotated,
        "LEVEL_TERMS": _level_terms(plan, cut, given.dtype),
        "SEGMENT": cut.segment,
        "LINES": cut.lines,
        "GROUPS": cut.groups,
        "PACK": cut.pack,
    }
    launch = _launch(given, cut, _MEASURING if tensor else 0, arguments)
    launch.arguments["WHOLE"] = 1 << (launch.programs - 1).bit_length() if tensor else 0
    return launch


@lru_cache(maxsize=1024)
def returning(plan: Plan, given: Given, keep_rotated: bool, masked: bool) -> Launch | None:
    """The launch of `triton_kernels.backward`; None when it has nothing to do."""
    cut = _cut(plan, given.size).of_lines(given.size)
    turns = cut.block > 1
    if not masked and not (turns and keep_rotated):
        return None
    arguments = _shared(plan, given, cut)
    rotate = turns and not keep_rotated
    return _launch(
        given, cut, 0, {**arguments, "MASK": masked, "ROTATE": rotate, "BACK": turns, "PACK": cut.pack}
    )


def _cut(plan: Plan, size: int) -> Cut:
    cut = cut_of(plan, size)
    if isinstance(cut, str):
        raise AssertionError(f"it was refused: {cut}")
    return cut


def _shared(plan: Plan, given: Given, cut: Cut) -> dict[str, Any]:
    """What several kernels are told."""
    signs = plan.signs if cut.block > 1 else None
    return {
        "matrix": _turn(cut.width, cut.block, given.device),
        "signs": _signs(signs, given.size, given.device),
        "norm": 1 / math.sqrt(cut.block),
        "rows": given.rows,
        "n": given.size,
        "per_row": cut.per_row,
        "ROTATE": cut.block > 1,
        "SIGNS": signs is not None,
        "TERMS": TERMS[given.dtype],
        "DTYPE": _name(given.dtype),
        "EVEN": cut.even,
        "W": cut.width,
        "INTERPRETED": interpreted(),
        "enable_fp_fusion": False,
        "num_stages": 1,  # a tile in flight; more cost a fifth more instructions and the registers of one
    }


def _survivors(plan: Plan) -> dict[str, Any]:
    """Of which numbers what is taken for the scale."""
    return {"STATISTIC": plan.statistic, "KEPT": plan.kept, "OF": plan.of}


def _launch(given: Given, cut: Cut, most: int, arguments: dict[str, Any]) -> Launch:
    """Tiles, and who walks over them: with a matrix as many programs as stay resident, else one for each."""
    processors = _processors(given.device)
    lines = cut.tile_lines(given.rows * given.size, processors)
    tiles = -(-given.rows * cut.per_row * cut.lines // lines)
    each = 5 if arguments.get("OF") or cut.groups > 1 else 6  # 32 numbers for a thread, or 64
    warps = min(max(lines * cut.width >> each + 5, 4), 16)
    programs = tiles if cut.block == 1 else min(tiles, processors * (_RESIDENT_WARPS // warps))
    programs = min(programs, most) if most else programs
    return Launch(
        programs, {**arguments, "tiles": tiles, "programs": programs, "M": lines, "num_warps": warps}
    )


def _ends(plan: Plan) -> dict[str, float]:
    """The lowest and the highest level."""
    if plan.rounding in ("nearest", "floor"):
        return {"lowest": plan.lowest + plan.shift, "highest": plan.highest + plan.shift}
    return {"lowest": plan.levels[0] if plan.rounding == "table" else -plan.top, "highest": plan.top}


def _level_terms(plan: Plan, cut: Cut, dtype: torch.dtype) -> int:
    """How many bfloat16 numbers make what is rotated back: 1 for levels, where lines have one scale."""
    if plan.rounding == "none":
        return TERMS[dtype]
    floats = plan.rounding == "float" and plan.mantissa_bits < 8
    levels = () if floats else plan.levels or (plan.lowest + plan.shift, plan.highest + plan.shift)
    exact = all(float(torch.tensor(level).bfloat16()) == level for level in levels)
    return 1 if exact and cut.groups == 1 else _MOST_TERMS


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=64)
def _turn(width: int, block: int, device: torch.device) -> Tensor:
    """Sylvester's matrix, not normalised, for each block of a line `[width, width]`."""
    if block == 1:
        return torch.empty(0, device=device)
    matrix = np.kron(np.eye(width // block, dtype=np.int8), sylvester(block))
    with torch.inference_mode(False):
        return torch.from_numpy(matrix).to(device, torch.float32 if interpreted() else torch.bfloat16)


def _signs(seed: int | None, size: int, device: torch.device) -> Tensor:
    return _turn(1, 1, device) if seed is None else fixed_signs(seed, size, torch.float32, device)


@lru_cache(maxsize=64)
def _table(plan: Plan, device: torch.device) -> Tensor:
    """The levels of a table, then its borders."""
    with torch.inference_mode(False):
        return torch.tensor([*plan.levels, *plan.borders], dtype=torch.float32, device=device)


@lru_cache(maxsize=8)
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@lru_cache(maxsize=8)
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device)
