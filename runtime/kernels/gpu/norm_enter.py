"""A norm and what prepares its result for packed linears, on CUDA, in one kernel: `norm_enter`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Call, Kernel
from ..composed import ComposedNormEnter
from .coded_linear import refuse_device
from .hadamard import Rows, enter_rows, entering_plan, rows_of


class FusedNormEnter(Kernel):
    """RMS norm or layer norm of rows, Hadamard rotation, and the projection of rows or groups."""

    name: ClassVar[str] = "gpu_norm_enter"
    operation: ClassVar[str] = "norm_enter"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def refuse(self, call: Call) -> str | None:
        reason = refuse_device(call)
        if reason is not None:
            return reason
        rows = _rows(call)
        return rows if isinstance(rows, str) else None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        weight = stored.get("weight")
        known = (x, weight, bias)
        if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in known):
            return ComposedNormEnter().run(call, x, stored, bias)
        rows = _rows(call)
        assert not isinstance(rows, str), "a call was refused"
        return enter_rows(x, rows, call.norm, weight, bias)


def _rows(call: Call) -> Rows | str:
    if len(call.shape) != 1:
        return f"the norm is over {len(call.shape)} dimensions"
    if call.representation.is_dense and not call.rotation.stages:
        return "nothing is prepared"
    plan = entering_plan(call.representation, call.rotation)
    return plan if isinstance(plan, str) else rows_of(plan, call.shape[0], True)
