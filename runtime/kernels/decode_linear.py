"""Decode the weight, then the dense product: the plain definition every fused linear kernel is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from .base import Call, Kernel
from .dense_product import dense_linear


class DecodeLinear(Kernel):
    """y = x R^T + b with R decoded at every call. Takes every representation on every device."""

    name: ClassVar[str] = "decode_linear"
    operation: ClassVar[str] = "linear"

    def refuse(self, call: Call) -> str | None:
        return None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        code = call.representation.unpack(stored, call.shape, call.dtype)
        return dense_linear(x, call.representation.decode(code), bias)
