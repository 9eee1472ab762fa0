"""Lloyd-Max levels: the scalar table with the least squared error on standard normal numbers (Max 1960)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ROUNDS = 60


def lloyd_max(count: int) -> Array:
    """The `count` optimal levels, ascending, to about twelve digits.

    Newton's method on the condition that every level is the mean of its cell; the derivative is tridiagonal.
    It starts from the quantiles of N(0, 3), where levels lie for many bits (Panter and Dite 1951).
    """
    from scipy.linalg import solve_banded
    from scipy.special import ndtr, ndtri

    levels = np.asarray(np.sqrt(3.0) * ndtri((np.arange(count) + 0.5) / count))
    for _ in range(_ROUNDS):
        borders = np.concatenate([[-np.inf], (levels[:-1] + levels[1:]) / 2, [np.inf]])
        density = np.exp(-0.5 * borders**2) / np.sqrt(2 * np.pi)
        mass = np.diff(ndtr(borders))
        means = -np.diff(density) / mass
        upper = np.append(density[1:-1] * (borders[1:-1] - means[:-1]) / mass[:-1], 0.0) / 2
        lower = np.append(0.0, density[1:-1] * (means[1:] - borders[1:-1]) / mass[1:]) / 2
        bands = np.zeros((3, count))  # how far a level is from its mean, by the levels on both sides
        bands[0, 1:], bands[1], bands[2, :-1] = -upper[:-1], 1 - upper - lower, -lower[1:]
        step = solve_banded((1, 1), bands, levels - means)
        passing = np.abs(np.diff(step) / np.diff(levels)).max()  # neighbours must not pass each other
        levels = levels - step * min(1.0, 0.5 / max(passing, 1e-300))
        levels = (levels - levels[::-1]) / 2  # symmetric, as the optimum is
        if np.abs(step).max() < 1e-14:
            break
    return levels
