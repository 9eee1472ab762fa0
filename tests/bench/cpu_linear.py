"""Weight-only products of packed weights on one CPU thread, against the dense product.

That is the fastest that torch has on this processor (`dense_products.py`). Weights are rotated, so that none is
found in a cache that it would not be in inside of a model. Beside ours: torch's own operators for 4- and 8-bit
weights (which need a converted copy), decoding the weight at every call as packed models do without C++, and our
decoding before torch's product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from dense_products import DenseProducts, copies
from timing import Case, Method
from torch import Tensor

from rhoc.runtime.kernels import Call, Kernel, candidates
from rhoc.runtime.kernels.cpu.matrix import decoded
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

SIZE, ROWS = 4096, (1, 4, 16, 256)
OURS = ("cpu_fixed_linear", "cpu_linear")
"""Kernels that share the form in which fields are prepared."""


def _group(bits: int, size: int) -> Quantize:
    return Quantize(bits, strategy="group", group_size=size, scale_dtype="bfloat16")


FORMATS = {
    "int8": Quantize(8, strategy="channel"),
    "int4": Quantize(4, strategy="channel"),
    "int4-g128": _group(4, 128),
    "int2": Quantize(2, strategy="channel", observer="rms", grid="midrise"),
    "int2-g64": _group(2, 64),
    "binary": Quantize(1, strategy="channel", observer="absmean"),
    "ternary": Quantize(2, strategy="channel", observer="absmean", grid="ternary"),
    "int3-g128": _group(3, 128),
    "int5": Quantize(5, strategy="channel"),
    "int6": Quantize(6, strategy="channel"),
    "int4-g128-asymmetric": Quantize(4, symmetric=False, strategy="group", group_size=128),
    "nf4-g64": Quantize(4, "float", grid="nf4", strategy="group", group_size=64),
    "fp8": Quantize(8, "float", strategy="channel"),
    "fp6": Quantize(6, "float", grid="e3m2", strategy="channel"),
    "mxfp4": Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor"),
    "mxfp8": Quantize(8, "float", strategy="group", group_size=32, observer="mx_floor"),
    "nvfp4": Quantize(4, "float", strategy="tensor_group", group_size=16),
}


def cases(quick: bool) -> Iterator[Case]:
    """Every format by few and by many rows, in bfloat16 and, for some formats, in float32."""
    size = 256 if quick else SIZE
    for dtype in (torch.bfloat16, torch.float32):
        dense = torch.randn(size, size).to(dtype)
        products = DenseProducts(dense, quick)
        names = list(FORMATS) if dtype == torch.bfloat16 else ["int8", "int4", "int4-g128", "int2", "nvfp4"]
        for name in names[:3] if quick else names:
            yield from _format_cases(name, products)


def _format_cases(name: str, products: DenseProducts) -> Iterator[Case]:
    dense, quick = products.weight, products.quick
    shape = (len(dense), len(dense))
    call = Call("linear", Representation((FORMATS[name],)).core, shape, dense.dtype, "cpu")
    packed = call.representation.pack(call.representation.encode(dense.float()))
    kernels = [kernel for kernel in candidates(call) if kernel.name in OURS]
    count = copies(sum(tensor.nbytes for tensor in packed.values()), quick)
    stored = [
        kernels[0].prepare(call, {field: tensor.clone() for field, tensor in packed.items()})
        for _ in range(count)
    ]
    exact_weight = call.representation.restore(
        call.representation.unpack(packed, shape, torch.float32)
    ).double()
    of_torch = _torch_copies(name, call, packed, count)
    for rows in (1, 16) if quick else ROWS:
        x = torch.randn(rows, shape[1]).to(dense.dtype)
        methods = {f"dense, {products.way(x)}": products.method(x)}
        methods |= _torch_methods(name, x, of_torch)
        if rows == 1:  # it takes as long for more, but for the product
            methods["decode, then dense"] = _decode(call, x, stored)
        methods["our decoding, then dense"] = _our_decode(call, x, stored)
        methods |= {kernel.name: _ours(kernel, call, x, stored) for kernel in kernels}
        exact = x.double() @ exact_weight.T
        errors = {
            method: float((run(0).double() - exact).norm() / exact.norm())  # type: ignore[attr-defined]
            for method, run in methods.items()
            if "decod" in method or method in OURS  # the others have weights of their own
        }
        kind = str(dense.dtype).removeprefix("torch.")
        yield Case(f"{shape[0]}x{shape[1]} {name} {kind}, {rows} rows", methods, errors)


def _torch_copies(name: str, call: Call, packed: Mapping[str, Tensor], count: int) -> list[Tensor]:
    """The weight as torch's operators want it, where they take it."""
    if call.dtype != torch.bfloat16 or name not in ("int8", "int4", "int4-g128"):
        return []
    codes = call.representation.unpack(packed, call.shape, torch.float32).carry
    if name == "int8":
        return [(codes ^ 0x80).view(torch.int8).clone() for _ in range(count)]
    return [torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1) for _ in range(count)]


def _torch_methods(name: str, x: Tensor, copies: list[Tensor]) -> dict[str, Method]:
    """Torch's operators; scales are ones, which costs the same."""
    if not copies:
        return {}
    if name == "int8":
        ones = x.new_ones(len(copies[0]))
        return {
            "_weight_int8pack_mm": lambda call: torch._weight_int8pack_mm(x, copies[call % len(copies)], ones)
        }
    group = 128
    affine = torch.stack(
        (x.new_ones(x.shape[1] // group, x.shape[1]), x.new_zeros(x.shape[1] // group, x.shape[1])), -1
    )
    return {
        "_weight_int4pack_mm_for_cpu": lambda call: torch._weight_int4pack_mm_for_cpu(
            x, copies[call % len(copies)], group, affine
        )
    }


def _decode(call: Call, x: Tensor, stored: list[Mapping[str, Tensor]]) -> Method:
    return lambda number: DecodeLinear().run(call, x, stored[number % len(stored)], None)


def _our_decode(call: Call, x: Tensor, stored: list[Mapping[str, Tensor]]) -> Method:
    return lambda number: F.linear(x, decoded(call, stored[number % len(stored)], x.dtype))


def _ours(kernel: Kernel, call: Call, x: Tensor, stored: list[Mapping[str, Tensor]]) -> Method:
    return lambda number: kernel.run(call, x, stored[number % len(stored)], None)
