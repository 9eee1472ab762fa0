"""The inputs of an operation as rows of what its weight, read as a matrix, is multiplied with."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from .sites import Site

_STRIDE, _PADDING, _DILATION, _GROUPS = 3, 4, 5, 6  # positions in a call of a convolution


def why_no_rows(site: Site, shape: tuple[int, ...]) -> str | None:
    """Why inputs of a site cannot be given as rows, or None."""
    name = site.operation.name
    if site.source is None:
        return f"{name} looks its weight up and multiplies with nothing"
    if name in ("linear", "matmul") and site.operation.channel == -1:
        return None
    if name != "conv":
        return f"inputs of {name} are not laid out in rows"
    if _option(site.node, _GROUPS, 1) != 1:
        return "its groups have inputs of their own"
    if isinstance(_option(site.node, _PADDING, 0), str):
        return f"padding is {_option(site.node, _PADDING, 0)!r}"
    dilation = _each(_option(site.node, _DILATION, 1), len(shape) - 2)
    return None if set(dilation) <= {1} else "its kernel is dilated"


def input_rows(site: Site, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[..., rows, in]` of an input, for a weight of this shape; leading dimensions are those of the weight.

    Where `why_no_rows` says nothing against it.
    """
    if site.operation.name != "conv":
        return _leading(x, shape[:-2])
    kernel = shape[2:]
    x = x if x.dim() == len(shape) else x.unsqueeze(0)
    stride = _each(_option(site.node, _STRIDE, 1), len(kernel))
    padding = _each(_option(site.node, _PADDING, 0), len(kernel))
    x = F.pad(x, [size for each in reversed(padding) for size in (each, each)])
    for dimension, (size, step) in enumerate(zip(kernel, stride, strict=True)):
        x = x.unfold(2 + dimension, size, step)
    positions = range(2, 2 + len(kernel))
    taken = x.permute(0, *positions, 1, *range(2 + len(kernel), x.dim()))
    return taken.reshape(-1, shape[1] * prod(kernel))


def _leading(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """`[*lead, rows, in]` of an input `[..., in]` that is multiplied with matrices `[*lead, in, out]`."""
    if not lead:
        return x.reshape(-1, x.shape[-1])
    rows = x if x.dim() > 1 else x.unsqueeze(0)
    full = torch.broadcast_shapes(rows.shape[:-2], lead)  # type: ignore[no-untyped-call]
    rows = rows.expand(*full, *rows.shape[-2:])
    own = [len(full) - len(lead) + i for i, size in enumerate(lead) if size > 1]
    rest = [dimension for dimension in range(rows.dim()) if dimension not in own]
    return rows.permute(*own, *rest).reshape(*lead, -1, x.shape[-1])


def _option(node: fx.Node, position: int, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else default


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes if len(sizes) == count else sizes * count
