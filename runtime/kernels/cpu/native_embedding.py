"""Rows of a packed matrix of scalar codes on a CPU: only those that are looked up are decoded, in C++."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Call, Kernel
from .matrix import decoded, refusal, with_plan


class CpuEmbedding(Kernel):
    """R[tokens], still rotated: the very numbers that decoding gives."""

    name: ClassVar[str] = "cpu_embedding"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    operation: ClassVar[str] = "embedding"

    @property
    def layout(self) -> str:
        return "cpu_plan"

    def refuse(self, call: Call) -> str | None:
        return refusal(call)

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return with_plan(call, stored)

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        inner = call.dtype if call.dtype == torch.bfloat16 else torch.float32
        return decoded(call, stored, inner, x.to(torch.int64)).to(call.dtype)
