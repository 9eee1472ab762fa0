"""Inputs as integer or 8-bit float codes and their scales: rotated, measured, rounded and stored at once.

What the stage would give, in the form that tensor cores multiply: a level q of the grid is stored as the
integer `times` q (less a half, of a grid of halves that has 256 levels), or as its e4m3 code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...entering import rotate
from ...interpreted import interpreted
from ...representation import Representation
from ...stages.quantize import Quantize
from ...training_kernels.plan import Plan, plan_of
from ...training_kernels.triton_cut import cut_of
from ...training_kernels.triton_launch import Given, projecting
from ...training_kernels.triton_project import refusal as projection_refusal
from ..base import Call
from ..stored import StoredMatrix, stored_matrix
from .stored_fields import table_of

_INT8 = range(-128, 128)
_SHARED = ("token", "channel", "group", "tensor")


@dataclass(frozen=True)
class Form:
    """How levels of a grid are stored: as integers `times` the level less `half`, or as `float8` codes.

    `levels[code]` is the stored number of each code of the stage.
    """

    levels: tuple[float, ...]
    times: int = 1
    half: float = 0.0
    float8: bool = False


@dataclass(frozen=True)
class Codes:
    """Inputs `[m, k]` as `[m, planes, plane]` codes, k at [k % planes, k // planes], zeros past the end.

    `scale` float32 `[m, groups]`: what a stored number is multiplied by; each is of `group` columns.
    """

    codes: Tensor
    scale: Tensor
    group: int


def form_of(levels: tuple[float, ...]) -> Form | None:
    """How numbers on these levels (by code) are stored; None where neither form holds them."""
    for times in (1, 2):
        if all(level * times in _INT8 for level in levels):
            return Form(tuple(level * times for level in levels), times)
    if all(level - 0.5 in _INT8 for level in levels):
        return Form(tuple(level - 0.5 for level in levels), half=0.5)
    known = float8_codes()
    if all(level in known for level in levels if level == level):
        return Form(tuple(float(known.get(level, 0x7F)) for level in levels), float8=True)
    return None


def input_form(call: Call) -> Form | str:
    """How the inputs of a call are stored, or why they are no codes."""
    if call.input.is_dense:
        return "inputs are not on a grid"
    if call.input.rotation != call.rotation:
        return f"inputs are rounded as {call.input}, and then rotated by {call.rotation}"
    stages = call.input.core.stages
    if len(stages) != 1 or not isinstance(stages[0], Quantize):
        return f"{call.input.core} is not one quantize stage"
    quantize = stages[0]
    if not quantize.symmetric or quantize.offset is not None or quantize.rounding is not None:
        return f"{quantize} has zero points, an offset or random rounding"
    if quantize.strategy not in _SHARED:
        return f"scales of inputs by {quantize.strategy} have no kernel"
    matrix = stored_matrix(call.input.core, (1, call.shape[-1]))
    if isinstance(matrix, str):
        return matrix
    return form_of(matrix.levels) or f"the levels of {quantize} are neither bytes nor e4m3 numbers"


@lru_cache(maxsize=1)
def float8_codes() -> dict[float, int]:
    """The e4m3 code of every number that has one."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist()
    return {value: code for code, value in reversed(list(enumerate(every))) if value == value}


def quantize_input(
    x: Tensor, representation: Representation, form: Form, planes: int, plane: int, *, fused: bool = True
) -> Codes:
    """The codes of `x` `[m, k]` under a representation that `input_form` took.

    One kernel, where the projection of training has one; else by the stages.
    """
    plan = fused_plan(representation)
    given = Given.of(x)
    if not fused or isinstance(plan, str) or plan.sharing == "tensor":
        return reference(x, representation, form, planes, plane)
    if projection_refusal(plan, tuple(x.shape), x.dtype, x.device):
        return reference(x, representation, form, planes, plane)
    return _launch(x, plan, given, form, planes, plane)


@lru_cache(maxsize=256)
def fused_plan(representation: Representation) -> Plan | str:
    """The plan of the projection, or why none can be followed."""
    return plan_of(representation, ())


def reference(x: Tensor, representation: Representation, form: Form, planes: int, plane: int) -> Codes:
    """The same by the stages themselves, in torch."""
    core = representation.core
    matrix = stored_matrix(core, tuple(x.shape))
    assert isinstance(matrix, StoredMatrix)
    code = core.encode(rotate(x, representation.rotation))
    dtype = torch.uint8 if form.float8 else torch.int8
    numbers = table_of(form.levels, x.device, dtype)[code.carry.long()]
    scale = matrix.scales(core.pack(code)) / form.times
    group = matrix.scale.sharing.columns if matrix.scale is not None else x.shape[1]
    return Codes(_in_planes(numbers, planes, plane), scale.expand(len(x), -1).contiguous(), group)


def _in_planes(codes: Tensor, planes: int, plane: int) -> Tensor:
    rows, size = codes.shape
    wide = codes.new_zeros(rows, planes * plane)
    wide[:, :size] = codes
    return wide.view(rows, plane, planes).transpose(1, 2).contiguous()


def _launch(x: Tensor, plan: Plan, given: Given, form: Form, planes: int, plane: int) -> Codes:
    from .quantize_input_triton import quantize  # imports Triton

    launch = projecting(plan, given, True, False)
    cut = cut_of(plan, given.size)
    assert not isinstance(cut, str)
    numbers = (x.float() if interpreted() else x).contiguous()
    group = plan.group_size if plan.sharing == "group" else given.size
    groups = -(-given.size // group)
    make = torch.empty if planes * plane == given.size else torch.zeros
    dtype = torch.uint8 if form.float8 else torch.int8
    codes = make(given.rows, planes, plane, dtype=dtype, device=x.device)
    scale = torch.empty(given.rows, groups, dtype=torch.float32, device=x.device)
    own = {
        "code_row": planes * plane,
        "plane": plane,
        "scale_row": groups,
        "TIMES": form.times,
        "HALF": form.half > 0,
        "PLANES": planes,
        "FLOAT8": form.float8,
    }
    known = {**launch.arguments, **own}
    options = ("num_warps", "num_stages", "enable_fp_fusion")
    arguments = {name: value for name, value in known.items() if name in (*quantize.arg_names, *options)}
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        quantize[(launch.programs,)](numbers, codes, scale, **arguments)
    return Codes(codes, scale, group)
