"""Decoding a stored matrix of scalar codes in C++: the bits that its representation decodes, sooner."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...representation import Representation
from ..base import Call
from .matrix import decoded, refusal


def restored(
    core: Representation, stored: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor | None:
    """What `core.restore(core.unpack(stored, shape, dtype))` is, rounded once to `dtype` where that is
    bfloat16; None where C++ does not read it: other chains, devices and dtypes, fields of other shapes."""
    if any(type(field) is not Tensor or field.device.type != "cpu" for field in stored.values()):
        return None
    call = Call("embedding", core, shape, dtype, "cpu")
    if refusal(call) is not None:
        return None
    layout = core.layout(shape, dtype)
    if not all(name in stored and field.fits(stored[name]) for name, field in layout.items()):
        return None
    return decoded(call, stored, torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
