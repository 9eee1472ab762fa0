"""Products of quantised inputs with quantised weights on one CPU thread, against the dense product.

All times include what is done to the input. The dense product is the fastest that torch has on this processor
(`dense_products.py`). Beside ours: torch's dynamic int8 operators (which hold weights in a layout of their own, and quantise the
input as a whole), its plain int8 product with the input quantised by torch, and the parts one after another:
inputs projected, weights decoded, and a dense product. Weights are rotated past the last cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import torch
from dense_products import DenseProducts, copies
from timing import Case, Method
from torch import Tensor

from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.composed import ComposedInput
from rhoc.runtime.kernels.cpu.int8_linear import CpuInt8Linear
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize

SIZE, ROWS = 4096, (1, 4, 16, 64, 256)

_TOKEN = Quantize(8, strategy="token", dynamic=True)
_MX = Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor")
_QUEST = Quantize(8, strategy="token", observer="rms", grid="midrise")


def _group(bits: int, size: int) -> Quantize:
    return Quantize(bits, strategy="group", group_size=size, scale_dtype="float16")


FORMATS: Mapping[str, tuple[Quantize, Quantize]] = {
    "w8a8": (Quantize(8, strategy="channel"), _TOKEN),
    "w4a8": (Quantize(4, strategy="channel"), _TOKEN),
    "w4a8-g128": (_group(4, 128), _TOKEN),
    "w2a8": (Quantize(2, strategy="channel", observer="rms", grid="midrise"), _TOKEN),
    "w2a8-g64": (_group(2, 64), _TOKEN),
    "w3a8-g128": (_group(3, 128), _TOKEN),
    "w4a8-g128-asymmetric": (Quantize(4, symmetric=False, strategy="group", group_size=128), _TOKEN),
    "w4a4-g128": (_group(4, 128), Quantize(4, strategy="group", group_size=128, dynamic=True)),
    "w8a8-midrise": (Quantize(8, strategy="channel", observer="rms", grid="midrise"), _QUEST),
    "mxfp4-a8": (_MX, _TOKEN),
    "mxfp4-a4": (_MX, _MX),
}
_ROTATED = ("w4a8",)  # once more behind a rotation


def cases(quick: bool) -> Iterator[Case]:
    """Every format by few and by many rows of bfloat16; the first three of float32 too."""
    size = 256 if quick else SIZE
    for dtype in (torch.bfloat16, torch.float32):
        dense = torch.randn(size, size).to(dtype)
        products = DenseProducts(dense, quick)
        names = list(FORMATS)[: 3 if quick or dtype == torch.float32 else None]
        for name in names:
            yield from _format_cases(name, products, ())
            if name in _ROTATED:
                yield from _format_cases(name, products, (Hadamard(128),))


def _format_cases(name: str, products: DenseProducts, rotation: tuple[Hadamard, ...]) -> Iterator[Case]:
    dense, quick = products.weight, products.quick
    weight, entering = (Representation((*rotation, stage)) for stage in FORMATS[name])
    shape, dtype = (len(dense), len(dense)), dense.dtype
    call = Call("input_linear", weight.core, shape, dtype, "cpu", input=entering, rotation=weight.rotation)
    packed, kernel = weight.core.pack(weight.core.encode(dense)), CpuInt8Linear()
    stored = [
        kernel.prepare(call, {field: tensor.clone() for field, tensor in packed.items()})
        for _ in range(copies(packed["carry"].nbytes, quick))
    ]
    exact_weight = weight.core.restore(weight.core.unpack(packed, shape, dtype)).double()
    composed, kind = ComposedInput(call, DecodeLinear()), str(dtype).removeprefix("torch.")
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).to(dtype)
        exact = _entered(call, x.float()) @ exact_weight.T
        methods: dict[str, Method] = {
            f"dense, {products.way(x)}": products.method(x),
            "parts": lambda i, x=x: composed.run(call, x, stored[i % len(stored)], None),
            "ours": lambda i, x=x: kernel.run(call, x, stored[i % len(stored)], None),
        }
        errors = {
            name: float((methods[name](0).double() - exact).norm() / exact.norm())  # type: ignore[attr-defined]
            for name in ("parts", "ours")
        }
        if name == "w8a8" and not rotation:
            methods |= _of_torch(x, quick)
        turned = "".join(f"{stage}-" for stage in rotation)
        yield Case(f"{turned}{name} {kind}, {shape[0]}x{shape[1]}, {rows} rows", methods, errors)


def _entered(call: Call, x: Tensor) -> Tensor:
    """The input in the precision that a product deserves."""
    rotated = call.rotation.encode(x).carry if call.rotation.stages else x
    return call.input.core.project(rotated).double()


def _of_torch(x: Tensor, quick: bool) -> dict[str, Method]:
    """Torch's own operators on int8 weights."""
    size = x.shape[1]
    codes = torch.randint(-127, 128, (size, size), dtype=torch.int8)
    count, wide = copies(codes.nbytes, quick), x.float()
    plain = [codes.clone() for _ in range(count)]
    methods: dict[str, Method] = {}
    for engine in ("fbgemm", "onednn"):
        torch.backends.quantized.engine = engine
        scales, zeros = torch.full((size,), 0.01, dtype=torch.float64), torch.zeros(size, dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensors of torch's quantised dtypes are on their way out
            weights = [
                torch.ops.quantized.linear_prepack(
                    torch._make_per_channel_quantized_tensor(w, scales, zeros, 0), None
                )
                for w in plain
            ]
        methods[f"linear_dynamic {engine}"] = lambda i, engine=engine, weights=weights: _dynamic(
            engine, wide, weights[i % count]
        )

    def int_mm(i: int) -> Tensor:
        scale = wide.abs().amax(-1, keepdim=True) / 127.5
        q = (wide / scale).round_().clamp_(-128, 127).to(torch.int8)
        return (torch._int_mm(q, plain[i % count].t()).float() * scale).to(x.dtype)

    return {**methods, "_int_mm": int_mm}


def _dynamic(engine: str, x: Tensor, weight: object) -> Tensor:
    torch.backends.quantized.engine = engine
    result: Tensor = torch.ops.quantized.linear_dynamic(x, weight, False)
    return result
