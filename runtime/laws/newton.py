"""Damped Newton within bounds, for a batch of problems at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .base import Integers
from .objective import Expansion, Objective
from .runs import Array

Flags = NDArray[np.bool_]

_FLOOR = 1e-22  # objective below which residuals are rounding
_RIDGE = 1e-13
_FIRST, _LEAST, _TRUSTED, _HOPELESS = 1e-2, 1e-10, 1e-5, 1e12  # damping
_REFINEMENTS = 3  # of a step that would cross bounds
_CHUNK, _LEAST_ROWS = 120_000, 16  # numbers in a work array, and problems expanded at once


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
    damping: float = _FIRST,
) -> Solution:
    """Local minima from `start` [batch, size] under run weights [batch, runs] or [1, runs].

    `fixed` marks parameters that stay where they are, [batch, size]; damping: of the first step, small where
    the start is near. A problem is solved when a Newton step promises a relative decrease below `tolerance`;
    it then leaves the batch.
    """
    low, high = objective.bounds
    points = np.clip(start, low, high)
    weights = np.broadcast_to(weights, (len(points), weights.shape[1]))
    held = np.broadcast_to(low == high, points.shape) if fixed is None else fixed | (low == high)
    damped = np.full(len(points), damping)
    solved = np.zeros(len(points), dtype=bool)
    left = np.arange(len(points))
    known = _expanded(objective, points, weights, left)
    for _ in range(iterations):
        if not left.size:
            break
        at, here = points[left], known.take(left)
        step = _within(at, here, held[left], damped[left], (low, high))
        there = _expanded(objective, at + step, weights, left)
        promised, gained = _promise(here, step), here.value - there.value
        better = gained > 0
        points[left[better]] += step[better]
        known.put(left[better], there.take(np.flatnonzero(better)))

        little = np.abs(promised) <= tolerance * here.value + _FLOOR
        done = (little & (damped[left] <= _TRUSTED)) | (here.value <= _FLOOR)
        solved[left[done]] = True
        trust = better & (gained > 0.25 * promised)
        damped[left] = np.maximum(
            damped[left] * np.select([little | trust, better], [0.2, 1.0], 10.0), _LEAST
        )
        left = left[~done & (damped[left] < _HOPELESS)]
    return Solution(points, known.value, solved)


def _expanded(objective: Objective, points: Array, weights: Array, rows: Integers) -> Expansion:
    """The objective at points of problems `rows`, few at a time, so that work arrays stay in cache."""
    size = max(_LEAST_ROWS, _CHUNK // (weights.shape[1] * objective.size))
    parts = []
    for i in range(0, max(len(rows), 1), size):
        part = rows[i : i + size]
        parts.append(objective.among(part).expand(points[i : i + size], weights[part]))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: list[Expansion]) -> Expansion:
    return Expansion(
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.gradient for part in parts]),
        np.concatenate([part.hessian for part in parts]),
        np.concatenate([part.scale for part in parts]),
    )


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


def _within(at: Array, here: Expansion, held: Flags, damping: Array, bounds: tuple[Array, Array]) -> Array:
    """Steps that end within bounds: what would cross a bound goes to it, the rest make the best of that."""
    low, high = bounds
    pressed = ((at <= low) & (here.gradient > 0)) | ((at >= high) & (here.gradient < 0))
    pinned = held | pressed
    moved = np.zeros_like(at)
    step = _step(here, pinned, moved, damping)
    for _ in range(_REFINEMENTS):
        crossing = ~pinned & ((at + step < low) | (at + step > high))
        rows = np.flatnonzero(crossing.any(axis=1))
        if not rows.size:
            break
        moved = np.where(crossing, np.clip(at + step, low, high) - at, moved)
        pinned = pinned | crossing
        step[rows] = _step(here.take(rows), pinned[rows], moved[rows], damping[rows])
    return np.asarray(np.clip(at + step, low, high) - at)


def _step(here: Expansion, pinned: Flags, moved: Array, damping: Array) -> Array:
    """(H + damping scale) step = -gradient on free parameters, while the pinned ones move by `moved`."""
    free = ~pinned
    # in units of each parameter's own curvature: parameters may be 1e-2 or 1e9
    unit = np.where(here.scale > 0, np.sqrt(here.scale), 1.0)
    gradient = here.gradient + (here.hessian @ moved[:, :, None])[:, :, 0] if moved.any() else here.gradient
    gradient = np.where(free, gradient, 0.0) / unit
    matrix = here.hessian * (free[:, :, None] & free[:, None, :]) / (unit[:, :, None] * unit[:, None, :])
    diagonal = np.arange(matrix.shape[1])
    matrix[:, diagonal, diagonal] += np.where(free, damping[:, None] + _RIDGE, 1.0)
    try:
        step = np.linalg.solve(matrix, -gradient[..., None])[..., 0]
    except np.linalg.LinAlgError:  # one singular matrix refuses the whole batch
        step = np.full_like(gradient, np.nan)
    uphill = np.flatnonzero(~((step * gradient).sum(axis=1) <= 0))
    if uphill.size:
        step[uphill] = _downhill(matrix[uphill], gradient[uphill])
    return np.where(free, step / unit, moved)


def _downhill(matrix: Array, gradient: Array) -> Array:
    """Newton steps with every curvature taken as positive, so that they lead down from saddles too."""
    values, vectors = np.linalg.eigh(np.nan_to_num(matrix))
    along = np.swapaxes(vectors, 1, 2) @ np.nan_to_num(gradient)[:, :, None]
    return np.asarray(-(vectors @ (along / np.maximum(np.abs(values), _RIDGE)[:, :, None]))[:, :, 0])


def _promise(expansion: Expansion, move: Array) -> Array:
    """The decrease that the quadratic model expects of a move, [batch]."""
    curved = (move[:, None, :] @ expansion.hessian @ move[:, :, None])[:, 0, 0]
    return np.asarray(-(expansion.gradient * move).sum(axis=1) - 0.5 * curved)
