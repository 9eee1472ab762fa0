"""Case bootstrap: fit again and again to resampled runs, and keep every draw.

Runs are resampled within their representation, so that none vanishes. A stratum of m runs is resampled m - 1
times and each draw counts m/(m - 1): with few runs per representation, drawing m would understate every
variance by (m - 1)/m (Rao and Wu, Resampling inference with complex survey data, JASA 83, 1988).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .base import Integers
from .newton import Solution, descend, minimise
from .objective import Objective
from .runs import Array, Runs

_NEAR = 1e-4  # damping of the first step: an optimum of resampled runs is near that of all
_TOLERANCE, _ITERATIONS = 1e-8, 100


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws of named parameters: values [draws, names] in single precision.

    seed: what they were drawn with; discarded: draws whose fit did not converge.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]
    seed: int = 0
    discarded: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str) -> Array:
        """Draws of one parameter, in double precision."""
        return self.values[:, self.names.index(name)].astype(np.float64)

    def covariance(self) -> Array:
        """Covariance between all parameters, [names, names]."""
        return np.asarray(np.atleast_2d(np.cov(self.values.astype(np.float64), rowvar=False)))


def interval(draws: Array, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def strata(runs: Runs, index: Integers) -> list[Integers]:
    """Runs that are resampled among themselves, as lists of positions.

    One stratum per representation. Representations with one run share a stratum, except where the run is the
    only one that bears on a coefficient: such a run cannot be left out.
    """
    names = np.array([runs.names.index(name) for name in runs.representation])
    uses = np.bincount(index.ravel(), minlength=int(index.max()) + 1)
    sole = (uses[index] == 1).any(axis=1)
    groups = [np.flatnonzero(names == i) for i in range(len(runs.names))]
    single = [int(group[0]) for group in groups if len(group) == 1 and not sole[group[0]]]
    kept = [group for group in groups if len(group) > 1]
    return [*kept, np.array(single, dtype=np.intp)] if len(single) > 1 else kept


def resampled(groups: list[Integers], num_runs: int, draws: int, seed: int) -> Array:
    """Run weights of bootstrap draws, [draws, runs]; they add up to the number of runs."""
    random = np.random.default_rng(seed)
    weights = np.ones((draws, num_runs))
    for group in groups:
        size = len(group)
        counts = random.multinomial(size - 1, np.full(size, 1 / size), size=draws)
        weights[:, group] = counts * (size / (size - 1))
    return weights


def refit(objective: Objective, point: Array, weights: Array, loss: Array | None = None) -> tuple[Array, int]:
    """Optima under each row of weights, from the full fit as a warm start; and how many did not converge.

    loss: measurements of their own for each row, [rows, runs].
    """
    found = refitted(objective if loss is None else replace(objective, loss=loss), point, weights)
    return found.points[found.solved], int((~found.solved).sum())


def refitted(objective: Objective, point: Array, weights: Array) -> Solution:
    """Optima under each row of weights: plain Newton from `point`, and where that fails with wide Huber
    zones.
    """
    start = np.broadcast_to(point, (len(weights), len(point)))
    found = minimise(objective, start, weights, damping=_NEAR, tolerance=_TOLERANCE, iterations=_ITERATIONS)
    rest = np.flatnonzero(~found.solved)
    if rest.size:
        wider = descend(
            objective.among(rest), start[rest], weights[rest], widenings=(16, 4), tolerance=_TOLERANCE
        )
        found.points[rest], found.values[rest], found.solved[rest] = wider.points, wider.values, wider.solved
    return found
