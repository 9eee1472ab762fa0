"""`float-quantized`: 8-bit floats (e4m3fn), with scales of rows, groups, blocks or the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...runtime.errors import RequestError
from ...runtime.stages.scales import PowerOfTwo
from .arguments import Arguments
from .coded import Coded, Held, is_float, scale_shape
from .layout import Layout, scales, taken


class FloatQuantized(Layout):
    """`weight` float8_e4m3fn `[N, K]` and `weight_scale` in the model's dtype; `naive-quantized` too."""

    name: ClassVar[str] = "float-quantized"

    def takes(self, held: Held, with_inputs: bool) -> bool:
        return is_float(held.matrix, 8) and not isinstance(held.quantize.storage, PowerOfTwo)

    def code(self, held: Held) -> Coded:
        shape = scale_shape(self.arguments(held), *held.shape)
        return Coded(held.codes, held.exact_scales().reshape(shape))

    def write(self, coded: Coded, arguments: Arguments) -> dict[str, Tensor]:
        return {"weight": coded.codes.view(torch.float8_e4m3fn), "weight_scale": coded.scale}

    def read(self, tensors: Mapping[str, Tensor], arguments: Arguments) -> Coded:
        weight = taken(tensors, "weight", torch.float8_e4m3fn)
        if weight.dim() != 2:
            raise RequestError(
                f"weight has shape {list(weight.shape)}, not a matrix's", advice="copy it again"
            )
        rows, columns = weight.shape
        return Coded(weight.contiguous().view(torch.uint8), scales(tensors, arguments, rows, columns))
