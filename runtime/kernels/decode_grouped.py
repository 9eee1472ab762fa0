"""Decode the matrices of experts, then a dense product for each: the plain definition of `grouped_linear`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from ..entering import enter
from .base import Call, Kernel
from .dense_product import dense_linear


class DecodeGrouped(Kernel):
    """Rows `[m, k]` that enter, in order, each with the matrix of its group of a weight `[E, n, k]`.

    The field `offsets` `[E]` says where groups end, as in `F.grouped_mm`; rows past the last give zeros.
    Takes every representation on every device.
    """

    name: ClassVar[str] = "decode_grouped"
    operation: ClassVar[str] = "grouped_linear"

    def refuse(self, call: Call) -> str | None:
        return None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        weight = call.representation.decode(call.representation.unpack(stored, call.shape, call.dtype))
        out, entered = x.new_zeros(len(x), call.shape[1]), enter(x, call.input, call.rotation)
        for expert, (first, last) in enumerate(pairwise([0, *stored["offsets"].tolist()])):
            out[first:last] = dense_linear(entered[first:last], weight[expert])
        return out
