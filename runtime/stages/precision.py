"""The precision that stages compute in, whatever surrounds them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a tensor of this dtype is computed with: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in a dtype: itself where it is of it, which asking torch takes a microsecond of every step."""
    return x if x.dtype == dtype else x.to(dtype)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast kept out: the same numbers must come out in a training step and in a packed model."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
