"""The OCP microscaling formats: floats of 4, 6 or 8 bits in groups of 32 under a byte of exponent (e8m0).

W = x * 2^(e - 127). They are decoded to bfloat16, which holds every one of these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...runtime.errors import RequestError
from ...runtime.packing import pack as pack_bits
from ...runtime.packing import packed_length
from ...runtime.packing import unpack as unpack_bits
from ...runtime.representation import Representation
from ...runtime.stage import CARRY
from ...runtime.stages.quantize import Quantize
from ...runtime.stages.scales import PowerOfTwo
from .arguments import Arguments
from .coded import FLOATS, Coded, Held, is_float, product, scale_shape, values
from .layout import Layout, scales, stored, taken

GROUP = 32


@dataclass(frozen=True)
class Microscaling(Layout):
    """`weight_packed` uint8 `[N, K b / 8]` (codes in a bit stream, lowest bits first), for 8 bits `weight`
    float8_e4m3fn; `weight_scale` uint8 `[N, K / 32]`."""

    name: str  # type: ignore[misc]
    bits: int

    def takes(self, held: Held, with_inputs: bool) -> bool:
        stage = held.quantize
        powers = isinstance(stage.storage, PowerOfTwo) and stage.unit == 1
        return powers and stage.group_size == GROUP and is_float(held.matrix, self.bits)

    def arguments(self, held: Held) -> Arguments:
        return replace(super().arguments(held), scale_dtype="torch.uint8")

    def code(self, held: Held) -> Coded:
        shape = scale_shape(self.arguments(held), *held.shape)
        return Coded(held.codes, held.fields["0.scale"].reshape(shape))

    def write(self, coded: Coded, arguments: Arguments) -> dict[str, Tensor]:
        if self.bits == 8:
            return {"weight": coded.codes.view(torch.float8_e4m3fn), "weight_scale": coded.scale}
        return {"weight_packed": pack_bits(coded.codes, self.bits), "weight_scale": coded.scale}

    def read(self, tensors: Mapping[str, Tensor], arguments: Arguments) -> Coded:
        if self.bits == 8:
            codes = taken(tensors, "weight", torch.float8_e4m3fn).contiguous().view(torch.uint8)
        else:
            codes = read_codes(tensors, self.bits)
        return Coded(codes, scales(tensors, arguments, *codes.shape, dtype=torch.uint8))

    def decode(self, coded: Coded, arguments: Arguments) -> Tensor:
        exponents = coded.scale.to(torch.int32) - 127
        powers = torch.exp2(exponents.to(torch.float64)).to(torch.bfloat16)
        return product(values(coded.codes, arguments), powers, None, arguments)

    def pack(self, coded: Coded, arguments: Arguments) -> tuple[Representation, dict[str, Tensor]]:
        stage = Quantize(
            self.bits, "float", strategy="group", group_size=arguments.group_size, observer="mx_floor",
            grid=FLOATS[self.bits],
        )  # fmt: skip
        return stored(stage, {CARRY: coded.codes, "0.scale": coded.scale}, coded, torch.bfloat16)


def read_codes(tensors: Mapping[str, Tensor], bits: int) -> Tensor:
    """Codes `[N, K]` of 4 or 6 bits in `weight_packed`, whose rows are full to the last bit."""
    packed = taken(tensors, "weight_packed", torch.uint8)
    columns = packed.shape[-1] * 8 // bits
    if packed.dim() != 2 or packed_length(columns, bits) != packed.shape[-1]:
        raise RequestError(
            f"weight_packed has shape {list(packed.shape)}, not that of a matrix of {bits}-bit codes",
            advice="is `format` in config.json that of the file?",
        )
    return unpack_bits(packed, bits, columns)
