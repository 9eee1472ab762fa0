"""The nearest vector of a table, exactly, for many vectors at once.

|x - c|^2 differs from |c|^2 - 2 x.c by a number that does not depend on c, so one matrix product gives the
scores of a whole table. On a CPU numpy finds the least of a row several times faster than torch does, and a
k-d tree beats both where vectors are short and tables long.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_PRODUCTS = 1 << 18  # at a time; BLAS libraries start threads above, which cost more than they bring here
_SCORES = 1 << 26  # at a time on an accelerator
_TREE_FROM = 512  # table entries from which a k-d tree is the faster way
_TREE_DIMENSIONS = 4


def nearest(x: Tensor, points: Tensor, weights: Tensor | None = None) -> Tensor:
    """The row of `points` nearest to each row of `x`, int64 `[n]`.

    `x` is `[n, d]`, `points` `[k, d]` in the same dtype (float32 or float64). `weights` `[n, d]` count the
    squared error of each number. Distances are exact but for the rounding of |x|^2 in the dtype.
    """
    if weights is not None and weights.shape[1] == 1:
        weights = None  # a vector's own weight does not change which point is nearest to it
    x, points = x.detach(), points.detach()
    if x.device.type != "cpu":
        return _by_torch(x, points, weights)
    if weights is None and points.shape[1] <= _TREE_DIMENSIONS and len(points) >= _TREE_FROM:
        return _by_tree(x, points)
    return _by_numpy(x, points, weights)


def _by_tree(x: Tensor, points: Tensor) -> Tensor:
    from scipy.spatial import cKDTree

    tree = cKDTree(points.double().numpy())
    codes = torch.empty(len(x), dtype=torch.int64)
    for rows in pieces(len(x), 1 << 16):
        found = tree.query(torch.nan_to_num(x[rows]).double().numpy())[1]
        codes[rows] = torch.from_numpy(np.asarray(found, dtype=np.int64))
    return codes


def _by_numpy(x: Tensor, points: Tensor, weights: Tensor | None) -> Tensor:
    centre = points.mean(0)
    right = _right(points - centre, weights is not None).numpy()
    codes = np.empty(len(x), dtype=np.int64)
    size = max(4, _PRODUCTS // right.size)
    scores = np.empty((size, len(points)), dtype=right.dtype)
    for rows in pieces(len(x), size):
        left = _left(x[rows] - centre, None if weights is None else weights[rows]).numpy()
        part = scores[: len(left)]
        np.matmul(left, right, out=part)
        np.argmin(part, axis=1, out=codes[rows])
    return torch.from_numpy(codes)


def _by_torch(x: Tensor, points: Tensor, weights: Tensor | None) -> Tensor:
    centre = points.mean(0)
    right = _right(points - centre, weights is not None)
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        for rows in pieces(len(x), max(1, _SCORES // len(points))):
            left = _left(x[rows] - centre, None if weights is None else weights[rows])
            codes[rows] = (left @ right).argmin(1)
    return codes


def _left(x: Tensor, weights: Tensor | None) -> Tensor:
    """What multiplies `_right`: `[1, x]`, or `[w, w x]` when squared errors are weighted."""
    if weights is None:
        return torch.cat([x.new_ones(len(x), 1), x], 1)
    return torch.cat([weights.to(x.dtype), weights * x], 1)


def _right(points: Tensor, weighted: bool) -> Tensor:
    """Squares (summed unless weighted) above -2 times the points, `[., k]`."""
    squares = points.square() if weighted else points.square().sum(1, keepdim=True)
    return torch.cat([squares, -2 * points], 1).T.contiguous()


def scores(x: Tensor, points: Tensor, weights: Tensor | None = None) -> Tensor:
    """|x - c|^2 - |x|^2 for each row of `x` and each point c, `[n, k]`; weighted where weights are given."""
    with torch.autocast(x.device.type, enabled=False):
        return _left(x, weights) @ _right(points, weights is not None)


def pieces(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
