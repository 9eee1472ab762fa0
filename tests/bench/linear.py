"""Linear layers on packed weights: every kernel that takes the call against the dense product.

Weights are rotated, so that none is found in a cache that it would not be in inside of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timing import Case, Method
from torch import Tensor

from rhoc.runtime.kernels import KERNELS, Call, Kernel
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

ROWS = (1, 16, 256)
_COLD = {"cpu": 100e6, "cuda": 200e6}  # bytes, past the last cache
_COPIES = 400  # of one weight at most, which leaves the smallest ones partly cached on a CPU


@dataclass(frozen=True)
class Weight:
    """A weight in its dense and its stored form, each copied until it is cold."""

    call: Call
    dense: Sequence[Tensor]
    stored: Sequence[dict[str, Tensor]]


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Weights in 1, 2, 4 and 8 bits, by few and by many rows."""
    shapes = ((4096, 4096), (4096, 14336)) if device == "cuda" else ((1024, 1024),)
    dtypes = (torch.bfloat16,) if device == "cuda" else (torch.float32, torch.bfloat16)
    widths = (4,) if quick else (1, 2, 4, 8)
    for shape in shapes[:1] if quick else shapes:
        for dtype in dtypes:
            for bits in widths:
                yield from _weight_cases(
                    Quantize(bits, observer="rms", grid="midrise", strategy="channel"), shape, dtype, device
                )
            grouped = Quantize(4, observer="mse", strategy="group", group_size=128, scale_dtype="bfloat16")
            yield from _weight_cases(grouped, shape, dtype, device)


def _weight_cases(
    quantize: Quantize, shape: tuple[int, int], dtype: torch.dtype, device: str
) -> Iterator[Case]:
    weight = _weight(quantize, shape, dtype, device)
    call = weight.call
    exact_weight = call.representation.restore(
        call.representation.unpack(weight.stored[0], shape, dtype)
    ).double()
    for rows in ROWS:
        x = torch.randn(rows, shape[1], dtype=dtype, device=device)
        methods: dict[str, Method] = {"dense": _dense(x, weight.dense)}
        errors = {}
        for kernel in KERNELS:
            if kernel.operation == "linear" and kernel.refuse(call) is None:
                methods[kernel.name] = method = _kernel(kernel, x, weight)
                result, exact = method(0), x.double() @ exact_weight.T
                errors[kernel.name] = float((result.double() - exact).norm() / exact.norm())
        kind = str(dtype).removeprefix("torch.")
        shared = quantize.group_size or quantize.strategy
        yield Case(
            f"{shape[0]}x{shape[1]} int{quantize.num_bits} {shared} {kind}, {rows} rows", methods, errors
        )


def _weight(quantize: Quantize, shape: tuple[int, int], dtype: torch.dtype, device: str) -> Weight:
    call = Call("linear", Representation((quantize,)).core, shape, dtype, device)
    dense = torch.randn(shape, dtype=dtype, device=device)
    stored = call.representation.pack(call.representation.encode(dense))
    size = sum(tensor.nbytes for tensor in stored.values())
    return Weight(
        call,
        [dense.clone() for _ in range(_count(dense.nbytes, device))],
        [{name: tensor.clone() for name, tensor in stored.items()} for _ in range(_count(size, device))],
    )


def _count(nbytes: int, device: str) -> int:
    return min(_COPIES, -(-int(_COLD[device]) // nbytes))


def _dense(x: Tensor, weights: Sequence[Tensor]) -> Method:
    return lambda call: F.linear(x, weights[call % len(weights)])


def _kernel(kernel: Kernel, x: Tensor, weight: Weight) -> Method:
    fields = [kernel.prepare(weight.call, stored) for stored in weight.stored]
    return lambda call: kernel.run(weight.call, x, fields[call % len(fields)], None)
