"""Tensors in pieces that fit a processor's cache, for code that passes over its numbers many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_PIECE = 1 << 15  # numbers: few enough for the cache, and for one thread, which other programs cannot stall


def pieces(x: Tensor) -> Sequence[Tensor]:
    """Views that together are `x`: flat pieces of a contiguous tensor on the CPU, else `x` as it is."""
    return torch.split(x.view(-1), _PIECE) if x.is_cpu and x.is_contiguous() else (x,)


def mapped(x: Tensor, dtype: torch.dtype, function: Callable[[Tensor, Tensor], None]) -> Tensor:
    """A new tensor of the shape of `x`, filled by `function(part of x, the same part of the result)`.

    The parts are contiguous and flat. A tensor without data is not visited.
    """
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.is_meta:
        return out
    source, target = x.reshape(-1), out.view(-1)
    size = _PIECE if x.is_cpu else max(x.numel(), 1)
    for part, into in zip(torch.split(source, size), torch.split(target, size), strict=True):
        function(part, into)
    return out
