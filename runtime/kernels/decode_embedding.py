"""Decode the weight, then gather rows: the plain definition every fused lookup is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .base import Call, Kernel


class DecodeEmbedding(Kernel):
    """R[tokens] with R decoded at every call, still rotated. Takes every representation on every device."""

    name: ClassVar[str] = "decode_embedding"
    operation: ClassVar[str] = "embedding"

    def refuse(self, call: Call) -> str | None:
        return None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        code = call.representation.unpack(stored, call.shape, call.dtype)
        return F.embedding(x, call.representation.decode(code))
