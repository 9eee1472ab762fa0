"""Linears whose weight C++ decodes in cache: what codebooks, trellises and sparse weights share.

For many inputs the weight is decoded as a whole, once, and torch multiplies.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import RequestError
from ...native.build import Library, loaded
from ...native.threads import shared_out
from ..base import Call, Kernel
from ..dense_product import product_dtype
from ..fixed_weight import with_gradient
from .matrix import narrow, padded, spaced

STORED = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
"""Floats as `Kind` of scalar_plan.h names them."""

_ANY = 1 << 40
_PAIRS, _EIGHTS = 1, 2  # what a processor may have: products of bfloat16, or AVX2 without AVX-512
_BLOCK = 1 << 22  # bytes of a weight that are decoded at once for torch
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FLAGS = ("-O2", "-fvect-cost-model=dynamic")  # a quarter of the time that -O3 compiles
_SHARED = (
    "vectors",
    "stored_numbers",
    "scalar_plan",
    "strip",
    "decode_codes",
    "decode_scales",
    "decode_scalar",
    "streamed",
    "streamed_codes",
)


def sources(name: str, *headers: str) -> Library:
    """The library of a family: `<name>.cpp` with its own headers and those that all share."""
    every = tuple(f"{header}.h" for header in (*_SHARED, *headers))
    return Library(name, Path(__file__).parent, f"{name}.cpp", every, _FLAGS)


@lru_cache(maxsize=8)
def functions(library: Library) -> ctypes.CDLL | str:
    """The compiled functions of a family, or why there are none."""
    found = loaded(library)
    if isinstance(found, str):
        return found
    address, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    found.rhoc_plan_bytes.restype = number
    found.rhoc_has.restype = flag
    found.rhoc_linear.argtypes = [
        *[address] * 3,
        number,
        number,
        flag,
        address,
        address,
        flag,
        number,
        number,
    ]
    found.rhoc_rows.argtypes = [*[address] * 3, flag, number, number]
    found.rhoc_linear.restype = found.rhoc_rows.restype = None
    return found


@dataclass(frozen=True, eq=False)
class Arranged:
    """A weight as C++ reads it: a plan, and fields in the order of the family's header."""

    plan: ctypes.Structure
    fields: tuple[Tensor | None, ...]

    @property
    def address(self) -> int:
        """Of the plan."""
        return ctypes.addressof(self.plan)

    @property
    def pointers(self) -> ctypes.Array[ctypes.c_void_p]:
        """To the fields."""
        at = [None if field is None else field.data_ptr() for field in self.fields]
        return (ctypes.c_void_p * len(at))(*at)


class StreamedLinear(Kernel, ABC):
    """y = x R^T + b for a family of weights; inputs of float16 are multiplied in float32."""

    operation: ClassVar[str] = "linear"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    library: ClassVar[Library]
    most: ClassVar[int]
    """Inputs of bfloat16 up to which decoding in cache was measured as faster than the whole weight first."""
    most_by_eights: ClassVar[int] = 128
    """The same of inputs of any dtype with AVX2 alone, where torch multiplies float32."""

    @abstractmethod
    def unfit(self, call: Call) -> str | None:
        """Why a weight is none of the family's, or stored as it does not know."""

    @abstractmethod
    def arranged(self, call: Call, stored: Mapping[str, Tensor]) -> Arranged:
        """The weight as C++ reads it; `stored` has the fields and shapes that it should."""

    def most_rows(self, call: Call) -> int:
        """Inputs up to which the weight is decoded in cache; with 512 bits torch never makes up for it in
        float32."""
        if self._functions().rhoc_has() == _EIGHTS:
            return self.most_by_eights
        return self.most if call.dtype == torch.bfloat16 else _ANY

    def refuse(self, call: Call) -> str | None:
        if call.device != "cpu":
            return f"the device is {call.device}, and it needs cpu"
        if call.dtype not in _DTYPES:
            return f"inputs are {str(call.dtype).removeprefix('torch.')}, not float32, bfloat16 or float16"
        if len(call.shape) != 2 or 0 in call.shape:
            return f"the weight has shape {list(call.shape)}, not a matrix's"
        unfit = self.unfit(call)
        if unfit is not None:
            return unfit
        library = functions(self.library)
        return library if isinstance(library, str) else None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        weight = self.arranged(call, _checked(call, stored))
        return with_gradient(
            lambda x, bias: self._linear(call, x, weight, bias), lambda: self._whole(call, weight), x, bias
        )

    def decoded(self, call: Call, stored: Mapping[str, Tensor]) -> Tensor:
        """The weight `[n, k]` in the dtype of the call, as its representation decodes it up to rounding."""
        return self._whole(call, self.arranged(call, _checked(call, stored)))

    def _linear(self, call: Call, x: Tensor, weight: Arranged, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, call.shape[1])
        if not 0 < len(rows) <= self.most_rows(call):
            return self._by_torch(call, x, weight, bias)
        return self._product(call, rows, weight, bias).to(x.dtype).reshape(*x.shape[:-1], call.shape[0])

    def _product(self, call: Call, x: Tensor, weight: Arranged, bias: Tensor | None) -> Tensor:
        library, dtype = self._functions(), _computed(x.dtype)
        has: int = library.rhoc_has()
        pairs = dtype == torch.bfloat16 and has == _PAIRS
        x = spaced(x) if has == _EIGHTS else padded(x if pairs else x.to(torch.float32))
        bias = None if bias is None else bias.to(dtype).contiguous()
        out = torch.empty(len(x), call.shape[0], dtype=dtype)
        of_weight, of_input = (weight.address, weight.pointers), (x.data_ptr(), len(x), x.stride(0), pairs)
        result = (None if bias is None else bias.data_ptr(), out.data_ptr(), dtype == torch.bfloat16)

        def work(first: int, last: int) -> None:
            library.rhoc_linear(*of_weight, *of_input, *result, first, last)

        shared_out(work, call.shape[0], prod(call.shape))
        return out

    def _by_torch(self, call: Call, x: Tensor, weight: Arranged, bias: Tensor | None) -> Tensor:
        """The product with the decoded weight: with all of it in a half precision, with blocks of rows in
        float32, which take little memory and stay in cache."""
        dtype, (rows, columns) = product_dtype(x), call.shape
        if dtype != torch.float32:
            return F.linear(x, self._whole(call, weight), bias)
        wide, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        out = x.new_empty(*x.shape[:-1], rows)
        each = min(rows, max(_BLOCK // (dtype.itemsize * columns), 1))
        block = torch.empty(each, columns, dtype=dtype)
        for first in range(0, rows, each):
            here = slice(first, min(first + each, rows))
            part = block[: here.stop - first]
            self._decode(weight, part, first)
            out[..., here] = F.linear(wide, part, None if bias is None else bias[here])
        return out

    def _whole(self, call: Call, weight: Arranged) -> Tensor:
        out = torch.empty(call.shape, dtype=_computed(call.dtype))
        self._decode(weight, out, 0)
        return out.to(call.dtype)

    def _decode(self, weight: Arranged, out: Tensor, first: int) -> None:
        """The rows of the weight from `first` on that `out` `[rows, k]` has room for."""
        library, bfloat = self._functions(), out.dtype == torch.bfloat16
        address, pointers = weight.address, weight.pointers
        top = out.data_ptr() - first * out.shape[1] * out.itemsize  # where row 0 would be

        def work(low: int, high: int) -> None:
            library.rhoc_rows(address, pointers, top, bfloat, first + low, first + high)

        shared_out(work, len(out), out.numel())

    def _functions(self) -> ctypes.CDLL:
        library = functions(self.library)
        assert not isinstance(library, str), "a weight was refused"
        return library


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype that C++ computes inputs of a dtype in."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _checked(call: Call, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields as C++ may read them, each where it is said to be; what `prepare` added is left as it is."""
    found = dict(narrow(stored))
    for name, field in call.representation.layout(call.shape, call.dtype).items():
        tensor = found.get(name)
        if tensor is None or not field.fits(tensor):
            here = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise RequestError(
                f"field {name!r} {here}, and {call.representation} stores it as {field.stored_shape}",
                advice="pack the tensor again",
            )
        found[name] = tensor.contiguous()
    return found
