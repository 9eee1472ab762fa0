"""Training one linear layer: forward and backward of the train form against the plain layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Case, Method
from torch import nn

import rhoc

SPECS = ("int4", "int2-a2", "int4-a4", "int8-a8", "2of4-int4", "sparse50-int4", "fp4")
SHAPES = ((2048, 64, 64), (2048, 512, 512))  # tokens, inputs, outputs


def cases(quick: bool) -> Iterator[Case]:
    """Small and medium layers."""
    for tokens, inputs, outputs in SHAPES[:1] if quick else SHAPES:
        layer = nn.Sequential(nn.Linear(inputs, outputs, bias=False))
        x = torch.randn(tokens, inputs, requires_grad=True)
        gradient = torch.randn(tokens, outputs)
        methods = {"dense": _both_ways(layer, x, gradient)}
        for spec in SPECS:
            methods[spec] = _both_ways(rhoc.compile(layer, spec).trainable(), x, gradient)
        yield Case(f"{tokens} tokens, {inputs} to {outputs}, float32", methods)


def _both_ways(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> Method:
    def run(call: int) -> None:
        layer(x).backward(gradient)
        x.grad = None
        layer.zero_grad()

    return run
