"""What a product sums over, found by differentiating it: the independent side of tests of arrangements."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def dependence(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Which elements of the result depend on which of `x`: booleans [result, *x.shape]."""
    jacobian = torch.autograd.functional.jacobian(function, x)
    assert isinstance(jacobian, Tensor)
    return jacobian.reshape(-1, *x.shape) != 0


def summed(depends: Tensor) -> set[int]:
    """The dimensions along which one element of the result depends on several elements."""
    return {d for d in range(depends.dim() - 1) if bool((_along(depends, d).sum(-1) > 1).any())}


def kept(depends: Tensor) -> set[int]:
    """The dimensions along which different elements of the result depend on different elements."""
    found = set()
    for d in range(depends.dim() - 1):
        along = _along(depends, d)
        used = along[along.any(-1)]
        if bool((used != used[:1]).any()):
            found.add(d)
    return found


def _along(depends: Tensor, dimension: int) -> Tensor:
    """[result, size]: the places along one dimension that each element of the result depends on."""
    return depends.movedim(dimension + 1, -1).flatten(1, -2).any(1) if depends.dim() > 2 else depends
