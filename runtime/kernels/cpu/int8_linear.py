"""Quantised inputs times quantised weights as integers on a CPU, in C++ that is compiled at the first use.

The weight is read as it is stored: codes are unpacked in registers for a few rows of input, and tile by tile
for many. Products of bytes are added up exactly in 32 bits over columns that share all scales, then scaled in
float32, and the result is rounded to its dtype once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ...native.build import Library, loaded
from ...native.threads import shared_out
from ...stage import CARRY
from ..base import Call, Kernel
from ..composed import ComposedInput
from ..decode_linear import DecodeLinear
from ..neighbours import ACTIVATIONS
from .int8_input import Codes, Entering, enter
from .int8_layout import Described, InputLayout, Product, described, product_of
from .streamed import STORED

_HEADERS = (
    "vectors.h",
    "stored_numbers.h",
    *(f"int8_{name}.h" for name in ("blocks", "decode", "plain", "product", "rows", "tiles")),
    *(f"int8_words{part}.h" for part in ("", "_cut", "_decode", "_dots", "_halves", "_rows")),
    *(f"int8_wide_{part}.h" for part in ("codes", "few")),
)
_BYTES = 6  # TABLE of stored_numbers.h
_DTYPES = (torch.float32, torch.bfloat16)
_SUMS = "int8.row_sums"


class CpuInt8Linear(Kernel):
    """`input_linear` on integers of up to 8 bits on both sides."""

    name: ClassVar[str] = "cpu_int8_linear"
    operation: ClassVar[str] = "input_linear"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def refuse(self, call: Call) -> str | None:
        if call.dtype not in _DTYPES:
            return f"inputs are {str(call.dtype).removeprefix('torch.')}, not float32 or bfloat16"
        found = described(call)
        if isinstance(found, str):
            return found
        functions = library(found.decoding)
        return functions if isinstance(functions, str) else None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = _found(call)
        return {**stored, _SUMS: _row_sums(found, stored)} if found.input.has_offset else stored

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        wanted = x.requires_grad or (bias is not None and bias.requires_grad)
        if (wanted and torch.is_grad_enabled()) or not x.numel():
            return ComposedInput(call, DecodeLinear()).run(call, x, stored, bias)
        found = _found(call)
        codes, shape = enter(found.input, x), (*x.shape[:-1], call.shape[0])
        sums = None
        if found.input.has_offset:
            sums = stored[_SUMS] if _SUMS in stored else _row_sums(found, stored)
        bias = None if bias is None else bias.float().contiguous()
        dtype = torch.float32 if call.activation else call.dtype
        result = product(found, codes, stored, sums, bias, torch.empty(shape, dtype=dtype))
        return ACTIVATIONS[call.activation](result).to(call.dtype) if call.activation else result


def _row_sums(found: Described[Entering], stored: Mapping[str, Tensor]) -> Tensor:
    """The sum of each row of the weight, float32 `[n]`: what it gives for inputs that are all 1."""
    codes = torch.zeros(1, found.input.stride, dtype=torch.int8)
    codes[:, : found.matrix.columns] = 1
    ones = Codes(codes, torch.ones(1, found.input.scales), None)
    return product(found, ones, stored, None, None, torch.empty(found.matrix.rows))


def product(
    found: Described[InputLayout],
    x: Codes,
    stored: Mapping[str, Tensor],
    row_sums: Tensor | None,
    bias: Tensor | None,
    result: Tensor,
) -> Tensor:
    """`result` `[..., n]` (float32 or bfloat16), filled in row by row of the input: int8 or int16 codes."""
    scale, matrix, functions = found.matrix.scale, found.matrix, library(found.decoding)
    assert scale is not None
    assert not isinstance(functions, str), "the call was refused"
    codes, scales = stored[CARRY].contiguous(), stored[scale.name].contiguous()
    zero = None if matrix.zero is None else stored[matrix.zero.name].contiguous()
    if scale.table is None and scales.dtype not in STORED:
        scales = scales.float()
    kind = _BYTES if scale.table is not None else STORED[scales.dtype]
    factor = stored[scale.factor].float() if scale.factor is not None else None
    wide = x.codes.dtype == torch.int16
    layout = _layout(found, kind, zero is not None and scales.ndim > 1, result.dtype == torch.bfloat16, wide)
    rows, outputs = len(x.codes), matrix.rows
    arguments = (
        layout,
        codes.data_ptr(),
        scales.data_ptr(),
        _address(zero),
        _address(factor),
        _address(row_sums),
        x.codes.data_ptr(),
        x.scales.data_ptr(),
        _address(x.offsets),
        rows,
        result.data_ptr(),
        _address(bias),
    )
    product = functions.rhoc_int8_linear
    shared_out(lambda first, last: product(*arguments, first, last), outputs, rows * outputs * matrix.columns)
    return result


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def takes_wide(found: Described[InputLayout]) -> str | None:
    """Why a weight is not multiplied with inputs of 16 bits, or None where it is."""
    functions = library(found.decoding)
    if isinstance(functions, str):
        return functions
    kind = STORED[torch.float32]  # whatever it is, since scales have no part in this
    if functions.rhoc_int8_is_wide(_layout(found, kind, False, False, True)):
        return None
    return "the levels, less their zero points, are too far from zero for 16 bits"


def _found(call: Call) -> Described[Entering]:
    found = described(call)
    assert isinstance(found, Described), "the call was refused"
    return found


@lru_cache(maxsize=4096)
def _product_of(
    found: Described[InputLayout], stored: int, zero_rows: bool, bfloat: bool, wide: bool
) -> Product:
    return product_of(found, stored, zero_rows=zero_rows, bfloat=bfloat, wide=wide)


def _layout(found: Described[InputLayout], stored: int, zero_rows: bool, bfloat: bool, wide: bool) -> int:
    """The address of the structure for C++."""
    return ctypes.addressof(_product_of(found, stored, zero_rows, bfloat, wide))


def sources(decoding: str) -> Library:
    """The library for codes that become integers in one way, so that no more is compiled than is used."""
    name, flag = f"int8_{decoding.lower()}", f"-DDECODING={decoding}"
    return Library(name, Path(__file__).parent, "int8_linear.cpp", _HEADERS, (flag,))


@lru_cache(maxsize=4)
def library(decoding: str) -> ctypes.CDLL | str:
    """The compiled functions for a way of decoding, or why there are none."""
    found = loaded(sources(decoding))
    return found if isinstance(found, str) else declared(found)


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions said."""
    address, number = ctypes.c_void_p, ctypes.c_int64
    found.rhoc_int8_product_bytes.restype = number
    found.rhoc_int8_is_wide.argtypes, found.rhoc_int8_is_wide.restype = [address], ctypes.c_int32
    found.rhoc_int8_linear.argtypes = [*[address] * 9, number, address, address, number, number]
    found.rhoc_int8_linear.restype = None
    assert found.rhoc_int8_product_bytes() == ctypes.sizeof(Product)
    return found
