"""Covariance of a fit without resampling: one linear solve with the exact Hessian.

For queries that want an interval at once. It is first order: where an interval is wide or near a bound, the
profile (`profile.py`) is right and this is not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from ..objective import Objective
from ..runs import Array
from .noise import free, leverage, noise, window
from .quantities import quantities, slopes

_SINGULAR = 1e-12  # relative curvature below which runs say nothing
_LEAST = 0.3  # of the expected curvature


@dataclass(frozen=True)
class Covariance:
    """values: what a law reports, by name; matrix: their covariance in that order; spare: degrees of freedom
    of the noise that it rests on.
    """

    values: dict[str, float]
    matrix: Array
    spare: int

    def standard_error(self, name: str) -> float:
        """Of one quantity."""
        position = list(self.values).index(name)
        return float(np.sqrt(max(self.matrix[position, position], 0.0)))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """By Student's t; symmetric in the logarithm for what is known to within a factor, and never below
        zero.
        """
        from scipy.stats import t

        value, error = self.values[name], self.standard_error(name)
        reach = float(t.ppf((1 + level) / 2, self.spare))
        if value > error:
            factor = float(np.exp(reach * error / value))
            return value / factor, value * factor
        return max(value - reach * error, 0.0), value + reach * error


def sandwich(objective: Objective, point: Array) -> Covariance:
    """H^-1 (sum of psi^2 J J^T / (1 - leverage)^2) H^-1 at an optimum [size], for all that the law reports
    (Huber 1967; the leverages of HC3, MacKinnon and White 1985). A parameter on a bound counts as known.
    """
    matrix = point_covariance(objective, point)
    named, moved = quantities(objective, point[None]), slopes(objective, point[None])
    gradient = np.concatenate(list(moved.values()))
    spare = max(len(objective.loss) - objective.degrees, 1)
    values = {name: float(value[0]) for name, value in named.items()}
    return Covariance(values, gradient @ matrix @ gradient.T, spare)


def point_covariance(objective: Objective, point: Array) -> Array:
    """The same for the point itself, [size, size]; zero in rows of what is on a bound."""
    jacobian = objective.jacobian(point[None])[0]
    counts = np.broadcast_to(objective.counts, len(jacobian))
    kept = free(objective, point)
    kept = kept[np.abs(jacobian[counts > 0][:, kept]).max(axis=0) > 0]
    jacobian = jacobian[:, kept]
    psi = np.clip(objective.residual(point[None])[0], -objective.delta, objective.delta)
    score = jacobian * (counts * psi / (1 - leverage(objective, point)))[:, None]
    expected = (jacobian * counts[:, None]).T @ jacobian * noise(objective, point).curvature
    inverse = _inverse(_hessian(objective, point)[np.ix_(kept, kept)], expected)
    found = np.zeros((objective.size, objective.size))
    found[np.ix_(kept, kept)] = inverse @ (score.T @ score) @ inverse
    return found


def _hessian(objective: Objective, point: Array) -> Array:
    """Of the objective, [size, size], over a window in which enough residuals lie."""
    wide = window(objective, point)
    expansion = replace(objective, delta=wide).expand(point[None], np.ones((1, objective.loss.shape[-1])))
    share = objective.delta / wide if isfinite(wide) else 1.0  # the share inside grows with the window
    return np.asarray(expansion.hessian[0] * share)


def _inverse(hessian: Array, expected: Array) -> Array:
    """Of a Hessian, its curvature in no direction less than a part of what the residuals expect there.

    A minimum makes it positive, but kinks of the Huber loss and few runs can make it as good as singular.
    """
    scale = np.sqrt(np.diag(expected))
    values, vectors = np.linalg.eigh(expected / np.outer(scale, scale))
    root = vectors / np.sqrt(np.maximum(values, _SINGULAR)) / scale[:, None]
    bent, turned = np.linalg.eigh(root.T @ hessian @ root)
    root = root @ turned
    return np.asarray((root / np.maximum(bent, _LEAST)) @ root.T)
