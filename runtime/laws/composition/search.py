"""The minimum of a function of one or two bounded numbers, by grids that close in on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..runs import Array

_POINTS, _ROUNDS = 25, 16


def minimise(objective: Callable[[Array], Array], bounds: Sequence[tuple[float, float]]) -> Array:
    """Where `objective` is least, within bounds; it takes points `[count, dimensions]` at once.

    Every round keeps two cells around the best point of a grid, so ends are 1e-10 of the bounds wide.
    """
    low, high = (np.array(ends) for ends in zip(*bounds, strict=True))
    least, most = low, high
    best = low
    for _ in range(_ROUNDS):
        axes = [np.linspace(a, b, _POINTS) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))
        best = points[np.argmin(objective(points))]
        reach = 3 * (high - low) / (_POINTS - 1)
        low, high = np.maximum(best - reach, least), np.minimum(best + reach, most)
    return np.asarray(best)
