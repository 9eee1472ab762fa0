"""The fused kernel for a projection in training, where one takes it."""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .plan import Plan

_NAMES = ("native", "triton_project")


@lru_cache(maxsize=1)
def _kernels() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(f".{name}", __package__) for name in _NAMES)


def kernel_for(plan: Plan | str, x: Tensor) -> ModuleType | None:
    """The module that projects a tensor like `x` by this plan; None when all refuse.

    A module has `refusal`, `project` and `backward`; see `refusals` for the reasons.
    """
    if isinstance(plan, str) or not x.numel():
        return None
    for kernel in _kernels():
        if not kernel.refusal(plan, tuple(x.shape), x.dtype, x.device):
            return kernel
    return None


def refusals(plan: Plan | str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[str]:
    """Why each kernel refuses, '' where it takes the tensor."""
    if isinstance(plan, str):
        return [plan] * len(_NAMES)
    return [kernel.refusal(plan, shape, dtype, device) for kernel in _kernels()]


def mask_shape(x: Tensor) -> list[int]:
    """The shape of a fused kernel's mask: a bit for each number, rows in whole bytes."""
    return [x.numel() // max(x.shape[-1], 1), (x.shape[-1] + 7) // 8]
