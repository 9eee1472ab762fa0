"""Column after column of a weight rounded, and the error of each made up for by those to come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .columns import Columns

_BLOCK = 128  # columns that are brought up to date one by one; those behind them wait for the whole block


def sweep(weights: Tensor, factor: Tensor, columns: Columns, order: Sequence[int] | None = None) -> None:
    """Round the columns of a weight in order (GPTQ 2210.17323, steps 1 to 3).

    `weights` `[b, in, out]` has the columns as rows; it is overwritten with what they were when their turn
    came. `factor` is U `[b or 1, in, in]` with H^-1 = U^T U, in the dtype of the weights, rows and columns in
    the same order as those of `weights`; `order` says which column each one is, where that is not its place.
    An error e of columns v is made up for by subtracting e U_vv^-1 U_v from the weights after them, within a
    block at once, behind it block by block.
    """
    size, width = weights.shape[1], columns.width
    factor = factor.expand(len(weights), -1, -1)
    for start, stop in _blocks(size, width, columns.shared):
        lost = torch.empty_like(weights[:, start:stop])
        for at in range(start, stop, width):
            end = min(at + width, stop)
            if at % columns.shared == 0:
                columns.open(at, weights[:, at : min(at + columns.shared, size)])
            now = weights[:, at:end]
            error = now - columns.round(at if order is None else order[at], now)
            corner = factor[:, at:end, at:end]
            scaled = error / corner if end == at + 1 else _solved(corner, error)
            lost[:, at - start : end - start] = scaled
            after = weights[:, end:stop]
            if end == at + 1:
                after.addcmul_(factor[:, at, end:stop].unsqueeze(-1), scaled, value=-1)
            else:
                after.baddbmm_(factor[:, at:end, end:stop].transpose(1, 2), scaled, alpha=-1)
        weights[:, stop:].baddbmm_(factor[:, start:stop, stop:].transpose(1, 2), lost, alpha=-1)


def _solved(corner: Tensor, error: Tensor) -> Tensor:
    """(e U_vv^-1)^T for errors e^T `[b, k, out]`."""
    solved: Tensor = torch.linalg.solve_triangular(corner.transpose(1, 2), error, upper=False)
    return solved


def _blocks(size: int, width: int, shared: int) -> Iterator[tuple[int, int]]:
    """Blocks of about 128 columns such that what columns share is decided when all of them are up to date."""
    unit = max(width, shared) if shared <= _BLOCK else width
    step = max(_BLOCK // unit, 1) * unit
    for first in range(0, size, max(shared, step)):
        last = min(first + max(shared, step), size)
        for start in range(first, last, step):
            yield start, min(start + step, last)
