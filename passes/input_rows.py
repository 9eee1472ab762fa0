"""The inputs of an operation as rows of what its weight, read as a matrix, is multiplied with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from ..runtime.input_rows import InputRows
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
    return rows_at(site, shape).of(x)


def rows_at(site: Site, shape: tuple[int, ...]) -> InputRows:
    """How inputs of a site are rows, for a weight of this shape; where `why_no_rows` says nothing against."""
    if site.operation.name != "conv":
        return InputRows(leading=shape[:-2])
    kernel = shape[2:]
    stride = _each(_option(site.node, _STRIDE, 1), len(kernel))
    padding = _each(_option(site.node, _PADDING, 0), len(kernel))
    return InputRows(kernel=kernel, stride=stride, padding=padding)


def _option(node: fx.Node, position: int, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else default


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes if len(sizes) == count else sizes * count
