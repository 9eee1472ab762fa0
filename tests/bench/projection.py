"""Training one linear layer: forward and backward of the train form against the plain layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Case, Method
from torch import nn

import rhoc

SPECS = ("int4", "int2-a2", "int4-a4", "int8-a8", "2of4-int4", "sparse50-int4", "fp4")
SHAPES = ((2048, 64, 64), (2048, 512, 512))  # tokens, inputs, outputs
GPU_SHAPES = ((8192, 1024, 1024), (8192, 4096, 4096))


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Small and medium layers on a CPU, medium and large ones in bfloat16 on CUDA."""
    shapes = GPU_SHAPES if device == "cuda" else SHAPES
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for tokens, inputs, outputs in shapes[:1] if quick else shapes:
        layer = nn.Sequential(nn.Linear(inputs, outputs, bias=False)).to(device, dtype)
        x = torch.randn(tokens, inputs, device=device, dtype=dtype, requires_grad=True)
        gradient = torch.randn(tokens, outputs, device=device, dtype=dtype)
        methods = {"dense": _both_ways(layer, x, gradient)}
        for spec in SPECS:
            methods[spec] = _both_ways(rhoc.compile(layer, spec).trainable(), x, gradient)
        kind = str(dtype).removeprefix("torch.")
        yield Case(f"{tokens} tokens, {inputs} to {outputs}, {kind}", methods, capture=False)


def _both_ways(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> Method:
    def run(call: int) -> None:
        layer(x).backward(gradient)
        x.grad = None
        layer.zero_grad()

    return run
