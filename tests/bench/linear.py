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

ROWS, SHAPE = (1, 16, 256), (1024, 1024)
_COLD = 100e6  # bytes, past the last cache
_COPIES = 400  # of one weight at most, which leaves the smallest ones partly cached


@dataclass(frozen=True)
class Weight:
    """A weight in its dense and its stored form, each copied until it is cold."""

    call: Call
    dense: Sequence[Tensor]
    stored: Sequence[dict[str, Tensor]]


def cases(quick: bool) -> Iterator[Case]:
    """Weights in 1, 2, 4 and 8 bits, by few and by many rows."""
    for dtype in (torch.float32, torch.bfloat16):
        for bits in (4,) if quick else (1, 2, 4, 8):
            by_rows = Quantize(bits, observer="rms", grid="midrise", strategy="channel")
            yield from _weight_cases(by_rows, SHAPE, dtype)
        grouped = Quantize(4, observer="mse", strategy="group", group_size=128, scale_dtype="bfloat16")
        yield from _weight_cases(grouped, SHAPE, dtype)


def _weight_cases(quantize: Quantize, shape: tuple[int, int], dtype: torch.dtype) -> Iterator[Case]:
    weight = _weight(quantize, shape, dtype)
    call = weight.call
    exact_weight = call.representation.restore(
        call.representation.unpack(weight.stored[0], shape, dtype)
    ).double()
    for rows in ROWS:
        x = torch.randn(rows, shape[1], dtype=dtype)
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


def _weight(quantize: Quantize, shape: tuple[int, int], dtype: torch.dtype) -> Weight:
    call = Call("linear", Representation((quantize,)).core, shape, dtype, "cpu")
    dense = torch.randn(shape, dtype=dtype)
    stored = call.representation.pack(call.representation.encode(dense))
    size = sum(tensor.nbytes for tensor in stored.values())
    return Weight(
        call,
        [dense.clone() for _ in range(_count(dense.nbytes))],
        [{name: tensor.clone() for name, tensor in stored.items()} for _ in range(_count(size))],
    )


def _count(nbytes: int) -> int:
    return min(_COPIES, -(-int(_COLD) // nbytes))


def _dense(x: Tensor, weights: Sequence[Tensor]) -> Method:
    return lambda call: F.linear(x, weights[call % len(weights)])


def _kernel(kernel: Kernel, x: Tensor, weight: Weight) -> Method:
    fields = [kernel.prepare(weight.call, stored) for stored in weight.stored]
    return lambda call: kernel.run(weight.call, x, fields[call % len(fields)], None)
