"""Profile likelihood intervals of anything a law reports: parameters, rho, derived numbers.

The objective is pulled towards a value of the quantity by a strong spring. Wherever that settles is the best
fit there is at the value it settled at, so that no reparametrisation is needed: the ends of the interval are
found by moving the anchor until the objective has risen by what the noise allows. Both ends of all quantities
are one batch for the solver.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..base import Integers
from ..identify import profile
from ..newton import minimise
from ..objective import Expansion, Objective
from ..runs import Array
from ..terms import Flags
from .noise import noise
from .quantities import quantities, slopes
from .sandwich import sandwich

_STIFF = 100.0  # springs, in curvatures of the profile itself
_ROUNDS = 12
_CLOSE = 0.005  # relative to the rise of the root of the deviance


@dataclass(frozen=True, kw_only=True)
class Pulled(Objective):
    """An objective with a spring on a quantity: strength/2 (q - anchor)^2, q in logarithms where `logs`.

    quantity, anchor, strength, logs: of each problem, [batch].
    """

    quantity: tuple[str, ...]
    anchor: Array
    strength: Array
    logs: Flags

    def among(self, rows: Integers) -> Pulled:
        """Of these problems of the batch."""
        return replace(
            self,
            loss=self.loss if self.loss.ndim == 1 else self.loss[rows],
            quantity=tuple(self.quantity[i] for i in rows),
            anchor=self.anchor[rows],
            strength=self.strength[rows],
            logs=self.logs[rows],
        )

    def read(self, points: Array) -> Array:
        """The quantity of each problem, [batch]."""
        found = quantities(self, points)
        value = np.array([found[name][i] for i, name in enumerate(self.quantity)])
        return np.where(self.logs, np.log(np.maximum(value, 1e-300)), value)

    def value(self, points: Array, weights: Array) -> Array:
        """The objective with the spring, [batch]."""
        away = self.read(points) - self.anchor
        return np.asarray(super().value(points, weights) + 0.5 * self.strength * away**2)

    def expand(self, points: Array, weights: Array) -> Expansion:
        """The same, with the quantity taken as linear: its own curvature is left to the damping."""
        plain = super().expand(points, weights)
        away = self.read(points) - self.anchor
        moved = slopes(self, points)
        slope = np.stack([moved[name][i] for i, name in enumerate(self.quantity)])
        found = quantities(self, points)
        value = np.array([found[name][i] for i, name in enumerate(self.quantity)])
        slope = np.where(self.logs[:, None], slope / np.maximum(value, 1e-300)[:, None], slope)
        force = self.strength[:, None] * slope
        return Expansion(
            value=plain.value + 0.5 * self.strength * away**2,
            gradient=plain.gradient + force * away[:, None],
            hessian=plain.hessian + force[:, :, None] * slope[:, None, :],
            scale=plain.scale + force * slope,
        )


def profile_intervals(
    objective: Objective, point: Array, level: float = 0.95, names: Sequence[str] = ()
) -> dict[str, tuple[float, float]]:
    """Intervals of quantities, by default all that the law reports, around the optimum `point` [size].

    The objective may rise by what Student's t allows for the degrees of freedom that the noise was estimated
    from (Bates and Watts 1988, 6.1). An end that no rise stops is where the search gave up, or a bound.
    """
    from scipy.stats import t

    covariance = sandwich(objective, point)
    asked = [n for n in names or covariance.values if covariance.standard_error(n) > 0]
    found = {n: (v, v) for n, v in covariance.values.items() if n in (names or covariance.values)}
    found |= _on_bounds(objective, point, found, level, covariance.spare)
    if not asked:
        return found
    errors = np.array([covariance.standard_error(name) for name in asked])
    values = np.array([covariance.values[name] for name in asked])
    logs = values > errors
    ends = _ends(
        objective,
        point,
        tuple(asked),
        logs,
        np.where(logs, errors / np.where(logs, values, 1.0), errors),
        float(t.ppf((1 + level) / 2, covariance.spare)),
    )
    return found | {name: (float(low), float(high)) for name, low, high in zip(asked, *ends, strict=True)}


def _on_bounds(
    objective: Objective, point: Array, among: Iterable[str], level: float, spare: int
) -> dict[str, tuple[float, float]]:
    """Parameters that ended on a bound: from there to where the objective has risen as far."""
    from scipy.stats import t

    low, high = objective.bounds
    allowed = 0.5 * noise(objective, point).variance * float(t.ppf((1 + level) / 2, spare)) ** 2
    found = {}
    for i, name in enumerate(objective.names):
        if name in among and low[i] < high[i] and not low[i] < point[i] < high[i]:
            walked = profile(objective, point, i, allowed)
            found[name] = (walked.low, walked.high)
    return found


def _ends(
    objective: Objective, point: Array, names: tuple[str, ...], logs: Flags, errors: Array, allowed: float
) -> tuple[Array, Array]:
    """Lower and upper ends, each [names], for a root of the deviance of `allowed`."""
    count, ones = len(names), np.ones((1, objective.loss.shape[-1]))
    sides, errors, logs = np.repeat([-1.0, 1.0], count), np.tile(errors, 2), np.tile(logs, 2)
    variance = noise(objective, point).variance
    shared = {name: getattr(objective, name) for name in ("terms", "loss", "delta", "residuals", "counts")}
    pulled = Pulled(
        **shared,
        quantity=names * 2,
        anchor=np.zeros(2 * count),
        strength=_STIFF * variance / errors**2,
        logs=logs,
    )
    points = np.repeat(point[None], 2 * count, axis=0)
    least, centre = objective.value(point[None], ones)[0], pulled.read(points)
    reach, ends = allowed * errors, centre.copy()
    left = np.arange(2 * count)
    for _ in range(_ROUNDS):
        there = replace(pulled.among(left), anchor=(centre + sides * reach)[left])
        points[left] = minimise(there, points[left], ones, tolerance=1e-8, iterations=60).points
        ends[left] = there.read(points[left])
        rise = objective.value(points[left], ones) - least
        root = np.sqrt(2 * np.maximum(rise, 0.0) / variance)
        follows = np.abs(ends[left] - there.anchor) < 0.5 * reach[left]  # else it is held at a bound
        reach[left] *= np.clip(allowed / np.maximum(root, 1e-9), 0.4, 2.5)
        left = left[(np.abs(root - allowed) > _CLOSE * allowed) & follows]
        if not left.size:
            break
    ends = np.where(logs, np.exp(ends), ends)
    return ends[:count], ends[count:]
