"""`nvfp4-pack-quantized`: e2m1 in groups of 16 under e4m3 scales, these under one float32 of the tensor.

W = x * (s / g) in float32, decoded to bfloat16. g divides, where ours multiplies: the number that gives the
same weights is looked for near 1 over the other, and nearly always is 1 over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ...runtime.errors import RequestError
from ...runtime.packing import pack as pack_bits
from ...runtime.representation import Representation
from ...runtime.stage import CARRY
from ...runtime.stages.quantize import Quantize
from .arguments import Arguments
from .coded import DENSE_ADVICE, Coded, Held, is_float, product, scale_shape, table, values
from .layout import Layout, scales, stored, taken
from .microscaling import read_codes

GROUP = 16
_NEAR = 64  # neighbours of 1/x in float32 that are tried
_E4M3 = "float8_e4m3fn"


class Nvfp4(Layout):
    """`weight_packed` uint8 `[N, K / 2]`, even columns in the low nibble; `weight_scale` float8_e4m3fn
    `[N, K / 16]`; `weight_global_scale` float32 `[1]`."""

    name: ClassVar[str] = "nvfp4-pack-quantized"

    def takes(self, held: Held, with_inputs: bool) -> bool:
        scale = held.matrix.scale
        bytes_of_floats = scale is not None and scale.table is not None and _is_e4m3(scale.table)
        return is_float(held.matrix, 4) and held.quantize.group_size == GROUP and bytes_of_floats

    def arguments(self, held: Held) -> Arguments:
        found = super().arguments(held)
        return replace(found, strategy="tensor_group", scale_dtype=f"torch.{_E4M3}")

    def code(self, held: Held) -> Coded:
        field = held.matrix.scale
        assert field is not None
        scale = held.fields[field.name].view(torch.float8_e4m3fn)
        unit = torch.full((1,), field.unit)
        own = unit if field.factor is None else held.fields[field.factor].to(torch.float32).reshape(1) * unit
        used = torch.unique(scale.to(torch.float32))
        factor = _inverse(own, used, lambda g: used / g, used * own)
        if factor is None:
            raise RequestError(
                "no global scale gives these weights to the bit", advice=f"encode them again, {DENSE_ADVICE}"
            )
        return Coded(held.codes, scale.reshape(scale_shape(self.arguments(held), *held.shape)), None, factor)

    def write(self, coded: Coded, arguments: Arguments) -> dict[str, Tensor]:
        assert coded.factor is not None
        packed = pack_bits(coded.codes, 4)
        return {"weight_packed": packed, "weight_scale": coded.scale, "weight_global_scale": coded.factor}

    def read(self, tensors: Mapping[str, Tensor], arguments: Arguments) -> Coded:
        codes = read_codes(tensors, 4)
        factor = taken(tensors, "weight_global_scale", torch.float32).reshape(-1)
        if factor.numel() != 1 or not bool(torch.isfinite(factor).all()) or not float(factor):
            raise RequestError(
                f"weight_global_scale is {factor.tolist()}, not one number", advice="copy it again"
            )
        found = scales(tensors, arguments, *codes.shape, dtype=torch.float8_e4m3fn)
        return Coded(codes, found, None, factor)

    def decode(self, coded: Coded, arguments: Arguments) -> Tensor:
        assert coded.factor is not None
        scale = coded.scale.to(torch.float32) / coded.factor
        return product(values(coded.codes, arguments), scale, None, arguments).to(torch.bfloat16)

    def pack(self, coded: Coded, arguments: Arguments) -> tuple[Representation, dict[str, Tensor]]:
        """With e4m3 scales under a factor as here; in float32 where no factor gives the same weights."""
        assert coded.factor is not None
        used = torch.unique(coded.scale.to(torch.float32))
        divided = used / coded.factor
        factor = _inverse(coded.factor, used, lambda own: used * own, divided)
        codes = coded.codes
        if factor is None or arguments.group_size != GROUP:
            stage = Quantize(
                4, "float", strategy="group", group_size=arguments.group_size, scale_dtype="float32"
            )
            whole = coded.scale.to(torch.float32) / coded.factor
            return stored(stage, {CARRY: codes, "0.scale": whole}, coded, torch.bfloat16)
        stage = Quantize(4, "float", strategy="tensor_group", group_size=GROUP)
        named = {CARRY: codes, "0.scale.carry": coded.scale.view(torch.uint8), "0.scale.0.scale": factor}
        return stored(stage, named, coded, torch.bfloat16)


def _is_e4m3(table_of_bytes: tuple[float, ...]) -> bool:
    """Whether byte i stands for the e4m3fn number of code i; the two codes of no number are not used."""
    expected = table(8).tolist()
    return all(a == b for a, b in zip(table_of_bytes, expected, strict=True) if b == b)


def _inverse(
    number: Tensor, used: Tensor, scales_of: Callable[[Tensor], Tensor], wanted: Tensor
) -> Tensor | None:
    """A float32 near 1 / number whose scales give the bfloat16 weights that the scales `wanted` give."""
    levels = table(4)
    weights = (wanted.unsqueeze(-1) * levels).to(torch.bfloat16)
    for candidate in _near(1 / number):
        if torch.equal((scales_of(candidate).unsqueeze(-1) * levels).to(torch.bfloat16), weights):
            return candidate
    return None


def _near(number: Tensor) -> Iterator[Tensor]:
    """A number and its neighbours in float32, the nearest first."""
    below = above = number
    yield number
    for _ in range(_NEAR):
        below, above = (
            torch.nextafter(x, torch.full_like(x, to)) for x, to in ((below, 0.0), (above, torch.inf))
        )
        yield above
        yield below
