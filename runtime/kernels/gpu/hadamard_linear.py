"""Linears whose input is only rotated, on CUDA: the rotation in one kernel, and the kernel of the linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ...entering import rotate
from ..base import Call, Kernel
from ..decode_linear import DecodeLinear
from .coded_linear import refuse_device
from .hadamard import Rows, enter_rows, rotation_plan, rows_of


class HadamardLinear(Kernel):
    """`input_linear` of inputs that are on no grid: one pass over memory rotates them."""

    name: ClassVar[str] = "gpu_hadamard_linear"
    operation: ClassVar[str] = "input_linear"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def refuse(self, call: Call) -> str | None:
        reason = refuse_device(call)
        if reason is not None:
            return reason
        if not call.input.is_dense:
            return "inputs are on a grid"
        rows = _rows(call)
        if isinstance(rows, str):
            return rows
        return "nothing faster than decoding multiplies" if _linear(call).name == DecodeLinear.name else None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return _linear(call).prepare(_plain(call), stored)

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            turned = rotate(x, call.rotation)
        else:
            rows = _rows(call)
            assert not isinstance(rows, str), "a call was refused"
            turned = enter_rows(x, rows)
        return _linear(call).run(_plain(call), turned, stored, bias)


def _rows(call: Call) -> Rows | str:
    plan = rotation_plan(call.rotation)
    return plan if isinstance(plan, str) else rows_of(plan, call.shape[-1], False)


def _plain(call: Call) -> Call:
    """The call of the linear alone."""
    operation = "linear_activation" if call.activation else "linear"
    return replace(call, operation=operation, input=type(call.input)(), rotation=type(call.rotation)())


@lru_cache(maxsize=1024)
def _linear(call: Call) -> Kernel:
    from .. import select  # the list of kernels, this one among them

    return select(_plain(call)).kernel
