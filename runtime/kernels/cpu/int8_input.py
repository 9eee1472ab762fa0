"""Inputs of integer products: quantised to bytes, in C++ where their stage has a fused form, else by it."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...entering import rotate
from ...native.build import Library, loaded
from ...native.threads import shared_out
from ...representation import Representation
from ...stages.quantize import Quantize
from ...training_kernels.native import Prepared, laid_out
from ...training_kernels.plan import Plan, plan_of
from ..base import Call

_SHARED = tuple(
    f"../../training_kernels/native_{n}.h" for n in ("plan", "rotation", "rounding", "scales", "vectors")
)
SOURCES = Library("int8_input", Path(__file__).parent, "int8_input.cpp", _SHARED)
_PARTIAL = 16  # bytes
_CODE = 128  # codes are below it in magnitude, or -128
_STEPS = (1.0, 2.0, 4.0, 8.0)


class _Coding(ctypes.Structure):
    """`Coding` of int8_input.cpp."""

    _fields_ = [
        ("stride", ctypes.c_int64),
        ("scales", ctypes.c_int64),
        ("shift", ctypes.c_float),
        ("steps", ctypes.c_float),
    ]


@dataclass(frozen=True, eq=False)
class Entering:
    """How inputs of `size` numbers become bytes: a level l is the integer (l - shift) * steps.

    `rotation` is what remains to be done to inputs before; `plan` is None where the stage itself makes the
    codes. `columns` of the `size` share a scale. `known` is the scale of all where it is given.
    """

    stage: Quantize
    size: int
    columns: int
    shift: float
    steps: float
    rotation: Representation
    plan: Plan | None
    known: float | None

    @property
    def scales(self) -> int:
        """Scales of a row."""
        return -(-self.size // self.columns)

    @property
    def has_offset(self) -> bool:
        """Whether integers are moved off what they stand for, by one number for each row."""
        return self.shift != 0 or not self.stage.symmetric

    @property
    def stride(self) -> int:
        """Bytes from one row of codes to the next: whole vectors, in other places of a cache."""
        return -(-self.size // 64) * 64 + 64


@dataclass(frozen=True, eq=False)
class Codes:
    """Inputs `[m, k]` as (codes + offsets) * scales: int8 `[m, stride]`, zero beyond k; float32 `[m]` or
    None; float32 `[m, groups]`."""

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None


@lru_cache(maxsize=1024)
def entering(call: Call) -> Entering | str:
    """How inputs of a call become bytes, or why they cannot."""
    if call.input.is_dense:
        return "inputs are not quantised"
    if call.input.rotation != call.rotation:
        return "inputs are not quantised in the rotation that the weight is stored in"
    stages = call.input.core.bound_stages
    if len(stages) != 1 or not isinstance(stages[0], Quantize):
        return f"inputs are projected by {call.input.core}, not by one quantize stage"
    return _entering(call, stages[0], call.shape[1])


def _entering(call: Call, stage: Quantize, size: int) -> Entering | str:
    grid = _integers(stage)
    if isinstance(grid, str):
        return grid
    if stage.offset is not None or stage.strategy == "block":
        return f"inputs are quantised by {stage}, {'in blocks' if stage.offset is None else 'moved off zero'}"
    columns = min(stage.group_size or size, size)
    found = Entering(stage, size, columns, *grid, call.rotation, None, None)
    if found.has_offset and found.scales > 1:
        return f"inputs are quantised by {stage}, off zero and in groups"
    if isinstance(library(), str):
        return str(library())
    free = (
        stage
        if stage.step is None
        else replace(stage, step=None, observer="absmax", percentile=None, clip=None)
    )
    known = None if stage.step is None else _stored(stage, stage.step, call.dtype)
    for rotation in (call.rotation, Representation()):
        plan = plan_of(Representation((*rotation.bound_stages, free)), ())
        if isinstance(plan, Plan) and (not plan.block or plan.block_for(size) > 1):
            left = Representation() if rotation.stages else call.rotation
            return replace(found, rotation=left, plan=plan, known=known)
    return found


def _integers(stage: Quantize) -> tuple[float, float] | str:
    """Shift and steps that make the levels of a grid integers of 8 bits."""
    if not stage.symmetric:
        return float(1 << (stage.num_bits - 1)), 1.0
    for shift, steps in (*((0.0, steps) for steps in _STEPS), (0.5, 1.0)):
        numbers = [(level - shift) * steps for level in stage.levels.levels]
        if all(number == round(number) and -_CODE <= number < _CODE for number in numbers):
            return shift, steps
    return f"inputs are quantised by {stage}, whose levels are no integers of 8 bits"


def _stored(stage: Quantize, step: float, dtype: torch.dtype) -> float:
    """A step that is given, rounded as it is stored for inputs of a dtype."""
    fields = stage.storage.store(torch.full((1,), step, dtype=torch.float32), dtype)
    return float(stage.storage.restore(fields, (1,)))


def enter(how: Entering, x: Tensor) -> Codes:
    """The codes of inputs `[..., k]` as rows. A row with a number that is NaN has a scale that is NaN."""
    x, rows = rotate(x, how.rotation), x.numel() // how.size
    codes = torch.empty(rows, how.stride, dtype=torch.int8)
    if how.plan is None:
        return _by_stage(how, x.reshape(rows, how.size), codes)
    x = x.contiguous()
    functions, layout, coding = _functions(), _layout(how, x.dtype).address, _coding(how)
    scales = torch.empty(rows, how.scales)
    known = math.nan if how.known is None else how.known
    if how.known is None and how.plan.sharing == "tensor":
        known = _measured(functions, layout, x, rows)
    source, target, found, to = x.data_ptr(), codes.data_ptr(), scales.data_ptr(), ctypes.addressof(coding)

    def work(first: int, last: int) -> None:
        functions.rhoc_int8_enter(layout, to, source, target, found, first, last, known)

    shared_out(work, rows, x.numel())
    return Codes(codes, scales, torch.full((rows,), how.shift) if how.has_offset else None)


def _measured(functions: ctypes.CDLL, layout: int, x: Tensor, rows: int) -> float:
    """The scale of the whole tensor."""
    partials = torch.empty(rows, _PARTIAL, dtype=torch.uint8)
    source, target = x.data_ptr(), partials.data_ptr()

    def work(first: int, last: int) -> None:
        functions.rhoc_int8_measure(layout, source, first, last, target)

    shared_out(work, rows, x.numel())
    return float(functions.rhoc_int8_scale(layout, target, rows))


def _by_stage(how: Entering, x: Tensor, codes: Tensor) -> Codes:
    """Codes and scales as the stage itself makes them."""
    stage, shape = how.stage, tuple(x.shape)
    carry, fields = stage.encode(x)
    steps = stage.steps(fields, shape)
    scales = steps.scale.float().expand(shape)[:, :: how.columns] / how.steps
    codes[:, how.size :] = 0
    wrong = x.isnan()
    if bool(wrong.any()):
        groups = torch.arange(how.size) // how.columns
        counts = torch.zeros(scales.shape).index_add_(1, groups, wrong.float())
        scales = scales.masked_fill(counts > 0, math.nan)
    if steps.zero is None:
        codes[:, : how.size] = _integers_by_code(how)[carry.long()]
        offsets = torch.full((len(x),), how.shift) if how.has_offset else None
        return Codes(codes, scales.contiguous(), offsets)
    codes[:, : how.size] = carry.to(torch.int16) - int(how.shift)
    return Codes(codes, scales.contiguous(), how.shift - steps.zero.float().expand(shape)[:, 0])


@lru_cache(maxsize=64)
def _integers_by_code(how: Entering) -> Tensor:
    levels = how.stage.levels.decode(torch.arange(1 << how.stage.num_bits, dtype=torch.uint8), torch.float32)
    numbers = (levels - how.shift) * how.steps
    return torch.nan_to_num(numbers).clamp(-_CODE, _CODE - 1).to(torch.int8)


@lru_cache(maxsize=1024)
def _layout(how: Entering, dtype: torch.dtype) -> Prepared:
    assert how.plan is not None
    return laid_out(how.plan, how.size, dtype, True)


@lru_cache(maxsize=1024)
def _coding(how: Entering) -> _Coding:
    return _Coding(how.stride, how.scales, how.shift, how.steps)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    found = loaded(SOURCES)
    if isinstance(found, str):
        return found
    address, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    found.rhoc_int8_coding_bytes.restype = number
    found.rhoc_int8_measure.argtypes = [address, address, number, number, address]
    found.rhoc_int8_scale.argtypes, found.rhoc_int8_scale.restype = [address, address, number], real
    found.rhoc_int8_enter.argtypes = [*[address] * 5, number, number, real]
    for function in (found.rhoc_int8_measure, found.rhoc_int8_enter):
        function.restype = None
    assert found.rhoc_int8_coding_bytes() == ctypes.sizeof(_Coding)
    return found


def _functions() -> ctypes.CDLL:
    found = library()
    assert not isinstance(found, str), "the call was refused"
    return found
