"""Weights and inputs as they are once represented, projected by hand with the gradient of what they were."""

from __future__ import annotations

import torch
from torch import Tensor

from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

W4 = Representation((Quantize(4, strategy="channel"),))
A8 = Representation((Quantize(8, strategy="token", dynamic=True, grid="midrise"),))
"""Its largest values are levels, where a rounding error before it decides nothing."""
W4A8 = {
    "version": 1,
    "name": "w4a8",
    "rules": {
        "targets": "re:.*",
        "weights": {"kind": "quantize", "num_bits": 4, "strategy": "channel"},
        "input_activations": {
            "kind": "quantize",
            "num_bits": 8,
            "strategy": "token",
            "dynamic": True,
            "grid": "midrise",
        },
    },
}


def through(x: Tensor, representation: Representation) -> Tensor:
    """What `x` is projected to, with the gradient of `x` itself."""
    return x + (representation.project(x.detach()) - x).detach()


def w(weight: Tensor) -> Tensor:
    """A weight [out, in], or a lookup table, projected."""
    return through(weight, W4)


def wt(weight: Tensor) -> Tensor:
    """A weight [..., in, out] projected."""
    return through(weight.mT, W4).mT


def wk(weight: Tensor) -> Tensor:
    """A kernel [out, in, *size] projected: a row for each output channel."""
    return through(weight.flatten(1), W4).reshape(weight.shape)


def wkt(weight: Tensor, groups: int = 1) -> Tensor:
    """A kernel [in, out / groups, *size] of a transposed convolution projected, group by group."""
    made = []
    for group in weight.chunk(groups):
        rows = group.transpose(0, 1)  # [out / groups, in / groups, *size]
        made.append(wk(rows).transpose(0, 1))
    return torch.cat(made)


def a(x: Tensor, dimension: int = -1) -> Tensor:
    """An input projected along what is summed over."""
    return through(x.movedim(dimension, -1), A8).movedim(-1, dimension)


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
