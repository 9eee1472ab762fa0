"""Integers: `pack-quantized`, packed in 32-bit words, and `int-quantized`, one byte each.

W = (q - z) * s with q and z signed integers of b bits. Packed, both have 2^(b-1) added; zero points are then
packed down the rows, where each row or group has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...runtime.errors import RequestError
from ...runtime.representation import Representation
from .arguments import Arguments
from .coded import DENSE_ADVICE, Coded, Held, scale_shape
from .layout import Layout, binary_as_asymmetric, scales, shaped, taken
from .words import from_words, to_words, word_count


class Integers(Layout):
    """What the two layouts of integers share."""

    def code(self, held: Held) -> Coded:
        codes = held.codes + (_shift(held) if held.quantize.symmetric else 0)
        shape = scale_shape(self.arguments(held), *held.shape)
        zeros = held.matrix.zeros(held.fields)
        if zeros is not None and held.quantize.zp_dtype is not None:
            raise RequestError(
                f"zp_dtype {held.quantize.zp_dtype}: zero points are integers there",
                advice="leave zp_dtype out of the spec",
            )
        zero = None if zeros is None else zeros.to(torch.uint8).reshape(shape)
        return Coded(codes.to(torch.uint8), held.exact_scales().reshape(shape), zero)

    def pack(self, coded: Coded, arguments: Arguments) -> tuple[Representation, dict[str, Tensor]]:
        return super().pack(*binary_as_asymmetric(coded, arguments))


def _shift(held: Held) -> int:
    """What is added to our codes, which count levels from the lowest, so that 2^(b-1) stands for zero."""
    line, half = held.matrix.line, 1 << (held.quantize.num_bits - 1)
    first, last = held.matrix.levels[0], held.matrix.levels[-1]
    inside = line is not None and line[1] == 1 and first == int(first) and -half <= first and last < half
    if not inside:
        raise RequestError(
            f"grid {held.quantize.grid or 'midrise'} of {held.quantize}: levels are the integers "
            f"from {-half} to {half - 1} there",
            advice=f"use grid: twos, {DENSE_ADVICE}" if held.quantize.num_bits > 1 else DENSE_ADVICE,
        )
    return int(first) + half


class PackQuantized(Integers):
    """`weight_packed` int32 `[N, ceil(K b / 32)]`, `weight_scale`, `weight_shape` int64 `[2]`, and for
    asymmetric codes `weight_zero_point`: int32 `[ceil(N b / 32), C]`, int8 where rows have none of their own.
    """

    name: ClassVar[str] = "pack-quantized"

    def takes(self, held: Held, with_inputs: bool) -> bool:
        return held.quantize.type == "int"

    def write(self, coded: Coded, arguments: Arguments) -> dict[str, Tensor]:
        written = {
            "weight_packed": to_words(coded.codes, arguments.num_bits),
            "weight_scale": coded.scale,
            "weight_shape": torch.tensor(coded.codes.shape, dtype=torch.int64),
        }
        if coded.zero is not None:
            zero = coded.zero
            packed = to_words(zero.t(), arguments.num_bits).t().contiguous() if _by_row(arguments) else None
            written["weight_zero_point"] = _signed(zero, arguments) if packed is None else packed
        return written

    def read(self, tensors: Mapping[str, Tensor], arguments: Arguments) -> Coded:
        sizes = taken(tensors, "weight_shape", torch.int64).reshape(-1).tolist()
        if len(sizes) != 2 or min(sizes) < 1:
            raise RequestError(f"weight_shape is {sizes}, not that of a matrix", advice="copy it again")
        rows, columns = sizes
        bits = arguments.num_bits
        words = taken(tensors, "weight_packed", torch.int32)
        words = shaped(words, "weight_packed", (rows, word_count(columns, bits)))
        scale = scales(tensors, arguments, rows, columns)
        codes = from_words(words, bits, columns)
        if arguments.symmetric:
            return Coded(codes, scale)
        if not _by_row(arguments):
            return Coded(codes, scale, _zero_bytes(tensors, arguments, rows, columns))
        packed = taken(tensors, "weight_zero_point", torch.int32)
        packed = shaped(packed, "weight_zero_point", (word_count(rows, bits), scale.shape[1]))
        return Coded(codes, scale, from_words(packed.t(), bits, rows).t().contiguous())


class IntQuantized(Integers):
    """`weight` int8 `[N, K]`, `weight_scale`, and for asymmetric codes `weight_zero_point` int8."""

    name: ClassVar[str] = "int-quantized"

    def takes(self, held: Held, with_inputs: bool) -> bool:
        return held.quantize.type == "int" and held.quantize.num_bits == 8 and with_inputs

    def write(self, coded: Coded, arguments: Arguments) -> dict[str, Tensor]:
        written = {"weight": _signed(coded.codes, arguments), "weight_scale": coded.scale}
        zero = coded.zero
        return written | ({} if zero is None else {"weight_zero_point": _signed(zero, arguments)})

    def read(self, tensors: Mapping[str, Tensor], arguments: Arguments) -> Coded:
        weight = taken(tensors, "weight", torch.int8)
        if weight.dim() != 2:
            raise RequestError(
                f"weight has shape {list(weight.shape)}, not a matrix's", advice="copy it again"
            )
        rows, columns = weight.shape
        zero = None if arguments.symmetric else _zero_bytes(tensors, arguments, rows, columns)
        return Coded(_unsigned(weight, "weight", arguments), scales(tensors, arguments, rows, columns), zero)


def _by_row(arguments: Arguments) -> bool:
    """Whether zero points are packed: where every row has its own."""
    return arguments.strategy in ("group", "channel")


def _zero_bytes(tensors: Mapping[str, Tensor], arguments: Arguments, rows: int, columns: int) -> Tensor:
    zero = taken(tensors, "weight_zero_point", torch.int8)
    zero = shaped(zero, "weight_zero_point", scale_shape(arguments, rows, columns))
    return _unsigned(zero, "weight_zero_point", arguments)


def _signed(codes: Tensor, arguments: Arguments) -> Tensor:
    return (codes.to(torch.int16) - arguments.half).to(torch.int8)


def _unsigned(signed: Tensor, name: str, arguments: Arguments) -> Tensor:
    half = arguments.half
    if signed.numel() and (int(signed.min()) < -half or int(signed.max()) >= half):
        raise RequestError(
            f"{name} holds numbers that {arguments.num_bits} bits do not",
            advice="is config.json that of the file?",
        )
    return (signed.to(torch.int16) + half).to(torch.uint8)
