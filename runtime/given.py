"""A factor that several tensors share: named by its digest wherever it is written, with its fields."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from .digest import digest_bytes
from .stage import Fields


@final
class Given(str):
    """The digest of an encoded factor, 16 hex digits, which has the fields of its code with it.

    As text, in files and in comparisons it is its digest. Copies share the fields: nothing changes them.
    """

    fields: Fields

    @classmethod
    def of(cls, fields: Fields) -> Given:
        """The name of these fields."""
        parts = [part for name, tensor in fields.items() for part in (name.encode(), _bytes(tensor))]
        given = cls(digest_bytes(*parts))
        given.fields = fields
        return given

    def __deepcopy__(self, memo: dict[int, Any]) -> Given:
        return self


def fields_of(given: str, device: torch.device) -> Fields | None:
    """The fields that a name has with it, on a device; None where it is only a name."""
    if not isinstance(given, Given):
        return None
    return {name: tensor.to(device) for name, tensor in given.fields.items()}


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    shape = str((tuple(tensor.shape), tensor.dtype)).encode()
    return shape + (flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
