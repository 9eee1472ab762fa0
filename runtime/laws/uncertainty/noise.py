"""The noise of runs around a fitted law: its size, and how hard each run pulls the fit towards itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..base import Integers
from ..objective import Objective, Residual
from ..runs import Array

_FAR = 3.0  # robust standard deviations beyond which a residual says nothing of the others
_MOST_LEVERAGE = 0.95  # a run that is fitted exactly whatever it measures has 1


class Noise(NamedTuple):
    """Of residuals. deviation: robust standard deviation, corrected for the parameters fitted; squared: mean
    square of the clipped residuals; curvature: their share within delta, smoothed where few are.
    """

    deviation: float
    squared: float
    curvature: float

    @property
    def variance(self) -> float:
        """What makes twice a rise of the objective a chi-squared: mean psi^2 / mean psi' (Huber 1964)."""
        return self.squared / self.curvature


def noise(objective: Objective, point: Array) -> Noise:
    """The noise of the runs of an objective at its optimum, a point [size]."""
    residual = _residual(objective, point)
    count = len(residual)
    spare = count / max(count - objective.degrees, 1)
    limit = _FAR * 1.4826 * float(np.median(np.abs(residual))) or np.inf
    deviation = float(np.sqrt(np.square(np.clip(residual, -limit, limit)).mean() * spare))
    squared = float(np.square(np.clip(residual, -objective.delta, objective.delta)).mean() * spare)
    share, window = _inside(residual, deviation, objective.delta)
    return Noise(deviation, max(squared, 1e-300), share * min(1.0, objective.delta / window))


def window(objective: Objective, point: Array) -> float:
    """Delta, or, where few residuals are within it, a width in which enough are to estimate a density."""
    return _inside(_residual(objective, point), noise(objective, point).deviation, objective.delta)[1]


def _residual(objective: Objective, point: Array) -> Array:
    """Of the runs that count."""
    residual = objective.residual(point[None])[0]
    return np.asarray(residual[np.broadcast_to(objective.counts, len(residual)) > 0])


def _inside(residual: Array, deviation: float, delta: float) -> tuple[float, float]:
    """What part of the residuals is within a window, and the window."""
    width = max(delta, deviation * len(residual) ** -0.2)
    return max(float((np.abs(residual) <= width).mean()), 1.0 / len(residual)), width


def free(objective: Objective, point: Array) -> Integers:
    """Positions of the parameters of a point [size] that are on no bound."""
    low, high = objective.bounds
    return np.flatnonzero((point > low) & (point < high))


def leverage(objective: Objective, point: Array) -> Array:
    """By how much of its own error each run moves its fitted value, [runs], from 0 to 1."""
    jacobian = objective.jacobian(point[None])[0][:, free(objective, point)]
    weight = np.sqrt(np.broadcast_to(objective.counts, len(jacobian)))
    columns = jacobian * weight[:, None]
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    left, scales, _ = np.linalg.svd(columns, full_matrices=False)
    kept = left[:, scales > 1e-10 * scales[0]]
    return np.asarray(np.minimum(np.square(kept).sum(axis=1), _MOST_LEVERAGE))


def measured_with(objective: Objective, point: Array, errors: Array) -> Array:
    """Losses that runs would have had at other errors, measured against predicted, [draws, runs]."""
    predicted = objective.predict(point[None])[0]
    if objective.residuals is Residual.LINEAR:
        return np.asarray(np.maximum(predicted + errors, 1e-3 * predicted))
    return np.asarray(predicted * np.exp(errors))
