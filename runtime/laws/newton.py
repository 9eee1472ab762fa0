"""Damped Newton within bounds, for a batch of problems at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .objective import Expansion, Objective
from .runs import Array

Flags = NDArray[np.bool_]

_FLOOR = 1e-22  # objective below which residuals are rounding
_RIDGE = 1e-13
_FIRST, _LEAST, _TRUSTED, _HOPELESS = 1e-2, 1e-10, 1e-5, 1e12  # damping


@dataclass(frozen=True)
class Solution:
    """Where Newton ended: points [batch, size], objective values [batch], and which problems are solved."""

    points: Array
    values: Array
    solved: Flags


@np.errstate(over="ignore", invalid="ignore")  # a step too far overflows, is no gain, and is not taken
def minimise(
    objective: Objective,
    start: Array,
    weights: Array,
    *,
    fixed: Flags | None = None,
    tolerance: float = 1e-11,
    iterations: int = 300,
) -> Solution:
    """Local minima from `start` [batch, size] under run weights [batch, runs] or [1, runs].

    `fixed` marks parameters that stay where they are, [batch, size]. A problem is solved when a Newton step
    promises a relative decrease below `tolerance`; it then leaves the batch.
    """
    low, high = objective.bounds
    points = np.clip(start, low, high)
    weights = np.broadcast_to(weights, (len(points), weights.shape[1]))
    values = objective.value(points, weights)
    held = np.broadcast_to(low == high, points.shape) if fixed is None else fixed | (low == high)
    damping = np.full(len(points), _FIRST)
    solved = np.zeros(len(points), dtype=bool)
    left = np.arange(len(points))
    for _ in range(iterations):
        if not left.size:
            break
        among = objective.among(left)
        at, expansion = points[left], among.expand(points[left], weights[left])
        pressed = ((at <= low) & (expansion.gradient > 0)) | ((at >= high) & (expansion.gradient < 0))
        step = _step(expansion, held[left] | pressed, damping[left])
        tried = np.clip(at + step, low, high)
        promised = _promise(expansion, tried - at)
        value = among.value(tried, weights[left])
        gained = expansion.value - value
        points[left[gained > 0]], values[left[gained > 0]] = tried[gained > 0], value[gained > 0]

        little = np.abs(promised) <= tolerance * expansion.value + _FLOOR
        done = (little & (damping[left] <= _TRUSTED)) | (expansion.value <= _FLOOR)
        solved[left[done]] = True
        trust = (gained > 0.25 * promised) & (gained > 0)
        factor = np.select([little | trust, gained > 0], [0.2, 1.0], 10.0)
        damping[left] = np.maximum(damping[left] * factor, _LEAST)
        left = left[~done & (damping[left] < _HOPELESS)]
    return Solution(points, values, solved)


def descend(
    objective: Objective,
    start: Array,
    weights: Array,
    *,
    widenings: tuple[int, ...] = (64, 16, 4),
    tolerance: float = 1e-11,
    iterations: int = 1000,
) -> Solution:
    """Minima from starts that may be far away: `minimise` with wide Huber zones first, the true one last.

    Where most residuals lie beyond delta the objective is nearly piecewise linear, and Newton crawls from
    kink to kink; at 64 delta it is nearly quadratic.
    """
    points = start
    for factor in widenings:
        wider = replace(objective, delta=objective.delta * factor)
        points = minimise(wider, points, weights, tolerance=1e-3, iterations=30).points
    return minimise(objective, points, weights, tolerance=tolerance, iterations=iterations)


def _step(expansion: Expansion, pinned: Flags, damping: Array) -> Array:
    """(H + damping scale) step = -gradient on free parameters; steepest descent where that leads uphill."""
    free = ~pinned
    # in units of each parameter's own curvature: parameters may be 1e-2 or 1e9
    unit = np.where(expansion.scale > 0, np.sqrt(expansion.scale), 1.0)
    gradient = np.where(pinned, 0.0, expansion.gradient) / unit
    matrix = expansion.hessian * (free[:, :, None] & free[:, None, :]) / (unit[:, :, None] * unit[:, None, :])
    diagonal = np.arange(matrix.shape[1])
    matrix[:, diagonal, diagonal] += np.where(free, damping[:, None] + _RIDGE, 1.0)
    descent = -gradient / (1 + damping[:, None])
    try:
        step = np.linalg.solve(matrix, -gradient[..., None])[..., 0]
    except np.linalg.LinAlgError:  # one singular matrix refuses the batch; the next try has more damping
        return np.where(free, descent, 0.0) / unit
    uphill = ~((step * gradient).sum(axis=1) <= 0)
    step[uphill] = descent[uphill]
    return np.where(free, step, 0.0) / unit


def _promise(expansion: Expansion, move: Array) -> Array:
    """The decrease that the quadratic model expects of a move, [batch]."""
    curved = (move[:, None, :] @ expansion.hessian @ move[:, :, None])[:, 0, 0]
    return np.asarray(-(expansion.gradient * move).sum(axis=1) - 0.5 * curved)
