"""How wrong a law's forecasts were inside its own data: the largest budgets and sizes left out.

A bootstrap says what the noise of the runs does to a forecast. It knows nothing of what the law's form does
to it, and on published sets that is most of the error. The runs themselves can say: leave out the most
expensive ones, fit the others, and compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from .bootstrap import refitted
from .objective import Objective, Residual
from .runs import Array, Runs
from .terms import Flags
from .uncertainty.noise import noise
from .uncertainty.sandwich import point_covariance

FLOP_PER_PARAM_TOKEN = 6.0  # C = 6 N D, Kaplan et al. (arXiv 2001.08361), 2.1
_STEP = 0.5  # of log10 distance: what counts as one step ahead
_STEPS = 3
_SAME = 0.02  # of log10 budget: two runs closer than this are of one budget
_MOST = 12  # cuts of one kind
_AHEAD = 0.05  # of log10 distance: what counts as ahead at all
_LEVELS = 3  # sizes, and token counts, below which nothing is known of an exponent
_PUBLISHED, _SPARE = 0.01, 3.0  # drift per decade of public sets (tests/test_backtest.py), and its weight
_INDEPENDENT = 0.5  # of a cut: neighbouring cuts share most of their runs
_LEAST = 3  # runs that a fit has beyond its parameters before it may forecast
_ENDS = ("params", "tokens", "product")

Key: TypeAlias = tuple[str, float, float]


@dataclass(frozen=True)
class Forecast:
    """Runs ahead of a cut, forecast from those before it.

    by: "budget" (6ND) or "size" (N); cut: its largest kept value; distance: log10 distance of the runs ahead
    (`distances`), root mean square; bias, error: mean and root mean square of log predicted - log measured;
    expected: what that error would be by noise alone; kept, runs: how many were fitted, and forecast.
    """

    by: str
    cut: float
    distance: float
    bias: float
    error: float
    expected: float
    kept: int
    runs: int

    @property
    def key(self) -> Key:
        """What identifies it among forecasts of other laws on the same runs."""
        return (self.by, self.cut, self.distance)


@dataclass(frozen=True)
class Drift:
    """What to expect of a forecast beyond what noise explains: a log loss per factor of ten.

    per_decade: one standard deviation; spare: degrees of freedom behind it; cuts: of the data, 0 when it
    rests on published sets alone.
    """

    per_decade: float
    spare: float
    cuts: int

    def reach(self, distance: float, level: float = 0.95) -> float:
        """Half width of an interval at a log10 distance, by Student's t."""
        from scipy.stats import t

        return float(t.ppf((1 + level) / 2, self.spare)) * self.per_decade * distance


@dataclass(frozen=True)
class Backtest:
    """All forecasts of a fit inside its data, and what its runs cover: smallest and largest N, D and ND."""

    params: tuple[float, float]
    tokens: tuple[float, float]
    product: tuple[float, float]
    forecasts: tuple[Forecast, ...] = ()

    @cached_property
    def drift(self) -> Drift:
        """The excess of squared forecast errors over noise, per squared distance.

        A forecast that happened to do better than noise makes no other better. Cuts overlap, so each counts
        half. Where they are few, what public sets show weighs in: one percent per factor of ten, as if from
        three degrees of freedom.
        """
        cuts = len({(f.by, f.cut) for f in self.forecasts})
        excess = sum(max(f.error**2 - f.expected**2, 0.0) for f in self.forecasts)
        squares = sum(f.distance**2 for f in self.forecasts) or 1.0
        seen = _INDEPENDENT * cuts
        mean = (_SPARE * _PUBLISHED**2 + seen * excess / squares) / (_SPARE + seen)
        return Drift(float(np.sqrt(mean)), _SPARE + seen, cuts)

    def distance(self, params: float, tokens: float) -> float:
        """How far a question lies outside the runs: the largest of log10 N, D and ND; 0 inside."""
        asked = (params, tokens, params * tokens)
        return max(
            float(_outside(np.log10(ends), np.log10(value)))
            for ends, value in zip((self.params, self.tokens, self.product), asked, strict=True)
        )

    def error_over(self, keys: frozenset[Key]) -> float:
        """Root mean square error over forecasts that other laws made too (`keys`)."""
        return float(np.sqrt(np.mean([f.error**2 for f in self.forecasts if f.key in keys])))

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> Backtest:
        """The same from JSON. Raises KeyError or TypeError when it is no such document."""
        ends = [(float(document[name][0]), float(document[name][1])) for name in _ENDS]
        forecasts = tuple(Forecast(**entry) for entry in document["forecasts"])
        return Backtest(ends[0], ends[1], ends[2], forecasts)


def backtest(objective: Objective, point: Array) -> Backtest:
    """Forecasts at every cut that leaves enough runs to fit, from the optimum `point` [size] of all runs.

    All cuts are one batch for the solver. Runs whose coefficient nothing before the cut determines are not
    forecast, and no cut is made that leaves fewer than three sizes or three token counts.
    """
    runs = objective.terms.runs
    columns = (runs.params, runs.tokens, runs.params * runs.tokens)
    ends = [(float(column.min()), float(column.max())) for column in columns]
    return Backtest(ends[0], ends[1], ends[2], _all_forecasts(objective, point))


def _all_forecasts(objective: Objective, point: Array) -> tuple[Forecast, ...]:
    runs = objective.terms.runs
    budget = FLOP_PER_PARAM_TOKEN * runs.params * runs.tokens
    cuts = [("budget", budget, at) for at in _cuts(budget)] + [
        ("size", runs.params, at) for at in _cuts(runs.params)
    ]
    kept = [(by, at, column <= at * 1.0001) for by, column, at in cuts]
    kept = [(by, at, keep) for by, at, keep in kept if _enough(objective, keep)]
    if not kept:
        return ()
    weights = np.array([keep for _, _, keep in kept], dtype=np.float64)
    found = refitted(objective, point, weights)
    return tuple(
        forecast
        for (by, at, keep), solution, solved in zip(kept, found.points, found.solved, strict=True)
        if solved
        for forecast in _forecasts(objective, solution, keep, by, at)
    )


def distances(kept: Runs, params: Array, tokens: Array) -> Array:
    """How far N and D lie beyond runs: the largest of log10 N, D and ND outside their range, 0 inside."""
    outside = [
        _outside(np.log10(have), np.log10(asked))
        for have, asked in (
            (kept.params, params),
            (kept.tokens, tokens),
            (kept.params * kept.tokens, params * tokens),
        )
    ]
    return np.asarray(np.max(outside, axis=0))


def _outside(have: Array, asked: Array) -> Array:
    return np.asarray(np.maximum(np.maximum(have.min() - asked, asked - have.max()), 0.0))


def _cuts(column: Array) -> list[float]:
    """Largest kept values, the highest first: between neighbouring values that differ."""
    logs = np.unique(np.log10(column))
    ends = [float(logs[i]) for i in range(len(logs) - 1) if logs[i + 1] - logs[i] > _SAME]
    picked = np.unique(np.linspace(0, len(ends) - 1, min(_MOST, len(ends))).round()).astype(int)
    return [10 ** ends[i] for i in picked[::-1]]


def _enough(objective: Objective, keep: Flags) -> bool:
    unused = objective.degrees - _used(objective, keep)
    runs = objective.terms.runs
    levels = min(len(np.unique(column[keep])) for column in (runs.params, runs.tokens))
    enough = int(keep.sum()) >= objective.degrees - unused + _LEAST and levels >= _LEVELS
    return enough and not bool(keep.all())


def _used(objective: Objective, keep: Flags) -> int:
    """How many free parameters runs bear on."""
    fixed = int(objective.terms.fixed[np.unique(objective.terms.index[keep])].sum())
    return len(np.unique(objective.terms.index[keep])) - fixed + len(objective.terms.outer)


def _forecasts(objective: Objective, point: Array, keep: Flags, by: str, at: float) -> list[Forecast]:
    known = np.isin(objective.terms.index, np.unique(objective.terms.index[keep])).all(axis=1)
    runs = objective.terms.runs
    distance = distances(runs.select(keep), runs.params, runs.tokens)
    predicted = objective.predict(point[None])[0]
    residual = np.log(predicted / objective.loss)
    relative = 1.0 if objective.residuals is Residual.LOG else 1 / predicted  # of a linear residual
    before = replace(objective, counts=objective.counts * keep.astype(np.float64))
    covariance = point_covariance(before, point)
    deviation = noise(before, point).deviation * relative * np.ones(len(runs))
    slopes = objective.jacobian(point[None])[0] * np.reshape(relative, (-1, 1))
    found = []
    for step in range(_STEPS):
        ahead = ~keep & known & (distance > max(step * _STEP, _AHEAD)) & (distance <= (step + 1) * _STEP)
        if not ahead.any():
            continue
        slope = slopes[ahead]
        variance = ((slope @ covariance) * slope).sum(axis=1) + deviation[ahead] ** 2
        if not np.isfinite(variance).all():  # nothing before the cut determines this direction
            continue
        found.append(
            Forecast(
                by=by,
                cut=at,
                distance=float(np.sqrt(np.square(distance[ahead]).mean())),
                bias=float(residual[ahead].mean()),
                error=float(np.sqrt(np.square(residual[ahead]).mean())),
                expected=float(np.sqrt(variance.mean())),
                kept=int(keep.sum()),
                runs=int(ahead.sum()),
            )
        )
    return found
