"""Apply a linear map of the last dimension to one side of a weight, in place and in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx

from ..runtime.representation import Representation
from .sites import Site, parameter_of
from .streams import End, Stream

_PIECE = 2**20  # numbers that are changed at a time

Map = Callable[[Tensor], Tensor]
"""Float64 [..., n] to the same shape, linear, along the last dimension."""


@torch.no_grad()
def turn(gm: fx.GraphModule, ends: Iterable[End], added: Iterable[fx.Node], change: Map) -> None:
    """Change the sides of weights that lie in a stream, with the biases of those that write it, and the
    parameters that are added to it. What several nodes read is changed once."""
    done: set[tuple[int, str, int]] = set()
    for end in ends:
        key = (id(parameter_of(gm, end.site.weight)), end.side, end.start)
        if key not in done:
            done.add(key)
            _weight(gm, end, change)
        bias = parameter_of(gm, end.site.bias) if end.side == "rows" else None
        if bias is not None and (id(bias), "bias", end.start) not in done:
            done.add((id(bias), "bias", end.start))
            part = torch.unflatten(bias, 0, (-1, end.period or len(bias)))[:, end.start : end.stop]
            part.copy_(change(part.double()))
    for node in added:
        parameter = parameter_of(gm, node)
        if parameter is not None and (id(parameter), "added", 0) not in done:
            done.add((id(parameter), "added", 0))
            parameter.copy_(change(parameter.double()))


def matrix_of(gm: fx.GraphModule, site: Site) -> Tensor:
    """A copy of the weight of a site as a matrix `[..., out, in]` in float64."""
    parameter = parameter_of(gm, site.weight)
    assert parameter is not None
    return site.arrangement(tuple(parameter.shape)).matrix(parameter.detach().double().clone())


@torch.no_grad()
def write_matrix(gm: fx.GraphModule, site: Site, matrix: Tensor) -> None:
    """Write a matrix back to the weight of a site."""
    parameter = parameter_of(gm, site.weight)
    assert parameter is not None
    shape = tuple(parameter.shape)
    parameter.copy_(site.arrangement(shape).restore(matrix, shape))


def rotated(rotation: Representation) -> Map:
    """x P for the rotation of a chain of orthogonal stages."""

    def change(x: Tensor) -> Tensor:
        for stage in rotation.bound_stages:
            x, _ = stage.encode(x.contiguous())
        return x

    return change


def rotate(gm: fx.GraphModule, stream: Stream, rotation: Representation) -> None:
    """Turn a whole stream from x to x P: y = x W^T stays, as (x P) (W P)^T."""
    turn(gm, stream.ends, stream.added, rotated(rotation))


@torch.no_grad()
def change_columns(gm: fx.GraphModule, site: Site, change: Map) -> None:
    """Apply a map to every row of a weight, along what it sums over."""
    _in_pieces(gm, site, lambda matrix: matrix, -2, change)


def _weight(gm: fx.GraphModule, end: End, change: Map) -> None:
    if end.side == "columns":
        change_columns(gm, end.site, change)
    else:
        _in_pieces(gm, end.site, lambda matrix: _rows(matrix, end), -1, change)


def _in_pieces(gm: fx.GraphModule, site: Site, choose: Map, dim: int, change: Map) -> None:
    """Change what is chosen of a weight, along the other one of its last two dimensions than `dim`.

    Piece by piece, since float64 copies of whole weights would cost more than the arithmetic.
    """
    parameter = parameter_of(gm, site.weight)
    assert parameter is not None
    shape = tuple(parameter.shape)
    matrix = site.arrangement(shape).matrix(parameter)
    chosen = choose(matrix)
    count = max(1, _PIECE * chosen.shape[dim] // max(chosen.numel(), 1))
    for piece in chosen.split(count, dim):  # type: ignore[no-untyped-call]
        wide = piece.double()
        piece.copy_(change(wide) if dim == -2 else change(wide.mT.contiguous()).mT)
    if matrix.data_ptr() != parameter.data_ptr():  # no view of it, but a copy
        parameter.copy_(site.arrangement(shape).restore(matrix, shape))


def _rows(matrix: Tensor, end: End) -> Tensor:
    """Of `[..., out, in]` the rows that an end writes, `[..., periods, rows, in]`."""
    parts = torch.unflatten(matrix, -2, (-1, end.period or matrix.shape[-2]))
    return parts[..., end.start : end.stop, :]
