"""The scalar quantiser with the least squared error for Gaussian numbers."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .levels import LevelGrid

Array = NDArray[np.float64]


@lru_cache(maxsize=8)
def lloyd_max(bits: int) -> LevelGrid:
    """The 2^bits levels with the least mean squared error for N(0, 1), in standard deviations.

    Lloyd (1957, published 1982) and Max (1960): every level is the mean of its cell, every border halfway
    between two levels. Solved by Newton's method from the levels that are optimal for many bits (Panter and
    Dite 1951: quantiles of a normal distribution three times as wide in variance), by symmetry for the
    positive half. Levels are rounded to twelve decimals, so that machines agree on them.
    """
    count = 1 << (bits - 1)
    start = NormalDist(0.0, math.sqrt(3))
    levels = np.array([start.inv_cdf(0.5 + (k + 0.5) / (2 * count)) for k in range(count)])
    step = np.ones(1)
    while np.abs(step).max() > 1e-8:  # the error after a step is about the square of the step
        step = _newton_step(levels)
        levels = levels - step
    positive = [round(level, 12) for level in levels.tolist()]
    return LevelGrid((*(-level for level in reversed(positive)), *positive), bits)


def _newton_step(levels: Array) -> Array:
    """What to take off the positive levels so that each comes nearer to the mean of its cell."""
    middles = (levels[:-1] + levels[1:]) / 2
    low, high = np.append(0.0, middles), np.append(middles, np.inf)
    mass, mean, at_low, at_high = _cells(low, high)
    # How the mean of a cell moves with its neighbours: half as much as with the border between them.
    below = (at_low * (mean - low) / mass)[1:] / 2
    above = (at_high[:-1] * (middles - mean[:-1]) / mass[:-1]) / 2
    own = 1 - np.append(0.0, below) - np.append(above, 0.0)
    return _solved(-below, own, -above, levels - mean)


def _solved(below: Array, diagonal: Array, above: Array, right: Array) -> Array:
    """The solution of a tridiagonal system (Thomas), in an order of operations that never varies."""
    pivots, values = diagonal.tolist(), right.tolist()
    for i in range(1, len(values)):
        factor = float(below[i - 1]) / pivots[i - 1]
        pivots[i] -= factor * float(above[i - 1])
        values[i] -= factor * values[i - 1]
    values[-1] /= pivots[-1]
    for i in range(len(values) - 2, -1, -1):
        values[i] = (values[i] - float(above[i]) * values[i + 1]) / pivots[i]
    return np.array(values)


def _cells(low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
    """Mass and mean of the cells of N(0, 1) between two borders each, and the density at the borders."""
    at_low, at_high = (np.exp(-border * border / 2) / math.sqrt(2 * math.pi) for border in (low, high))
    beyond_low, beyond_high = (
        np.array([math.erfc(x / math.sqrt(2)) / 2 for x in border.tolist()]) for border in (low, high)
    )
    mass = beyond_low - beyond_high
    return mass, (at_low - at_high) / mass, at_low, at_high
