"""Projections of training against a copy of the tensor, which moves as many bytes but for the mask's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Case, Method
from torch import Tensor

from rhoc.runtime.estimators import Trust
from rhoc.runtime.program import program_of
from rhoc.runtime.projection import project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify
from rhoc.runtime.training_kernels.select import refusals

_RMS = Quantize(4, strategy="channel", observer="rms", grid="midrise")
_GROUPS = Quantize(4, strategy="group", group_size=128)
CHAINS = {
    "int4 groups of 128": Representation((_GROUPS,)),
    "int4 rms trust": Representation((_RMS,)),
    "Hadamard 128, int4 rms trust": Representation((Hadamard(128), _RMS)),
    "2:4, int4 groups of 64": Representation(
        (Sparsify(sparsity_structure="2:4"), Quantize(4, strategy="group", group_size=64))
    ),
    "mxfp4": Representation((Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor"),)),
}
SHAPES = ((2048, 512), (2048, 4096))
_BYTES = 1 << 27  # of the tensors that take turns: more than a cache holds


def cases(quick: bool) -> Iterator[Case]:
    """Forward alone, and forward with backward, on one thread of a CPU; CUDA has a bench of its own."""
    for shape in SHAPES[:1] if quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            tensors, gradients = _turns(shape, dtype), _turns(shape, dtype)
            forward: dict[str, Method] = {"copy": lambda call, t=tensors: t[call % len(t)].clone()}
            both: dict[str, Method] = {"two copies": _copies(tensors, gradients)}
            for name, chain in CHAINS.items():
                reason = refusals(program_of(chain, (Trust(),)).plan, shape, dtype, tensors[0].device)[0]
                if reason:
                    raise SystemExit(f"{name} is not fused: {reason}")
                forward[name] = _forward(tensors, chain)
                both[name] = _both_ways(tensors, gradients, chain)
            kind = f"{shape[0]} x {shape[1]} {str(dtype).removeprefix('torch.')}"
            yield Case(f"{kind}, forward", forward)
            yield Case(f"{kind}, forward and backward", both)


def _turns(shape: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    count = max(2, _BYTES // (shape[0] * shape[1] * dtype.itemsize))
    return [torch.randn(shape).to(dtype).requires_grad_() for _ in range(count)]


def _copies(tensors: list[Tensor], gradients: list[Tensor]) -> Method:
    return lambda call: (tensors[call % len(tensors)].clone(), gradients[call % len(gradients)].clone())


def _forward(tensors: list[Tensor], chain: Representation) -> Method:
    return lambda call: project_with_gradient(tensors[call % len(tensors)], chain, (Trust(),))


def _both_ways(tensors: list[Tensor], gradients: list[Tensor], chain: Representation) -> Method:
    def run(call: int) -> object:
        x, gradient = tensors[call % len(tensors)], gradients[call % len(gradients)]
        return torch.autograd.grad(project_with_gradient(x, chain, (Trust(),)), x, gradient)

    return run
