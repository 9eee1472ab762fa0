"""The precision that stages compute in, whatever surrounds them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a tensor of this dtype is computed with: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast kept out: the same numbers must come out in a training step and in a packed model."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
