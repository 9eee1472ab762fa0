"""Backtests: how wrong forecasts beyond part of the data were, by distance, and what is allowed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ...runtime.laws.backtest import Backtest
from .style import DASHES, INK, Style, log_axis

CUTS = {"budget": "largest budgets left out", "size": "largest sizes left out"}
LOOK = {"budget": Style("#0072B2", "o"), "size": Style("#E69F00", "^")}
_WIDE = 10.0  # ratio of the largest to the least error from which on a logarithmic axis is drawn
_POINTS = 40


@dataclass(frozen=True)
class ForecastPoint:
    """Runs ahead of a cut: by what it was cut; how far they are, in factors of ten; the root mean square
    error in per cent of the loss, and what the noise of the runs alone would have made it; how many they are.
    """

    by: str
    distance: float
    error: float
    noise: float
    runs: int


@dataclass(frozen=True)
class ForecastData:
    """Forecasts, the nearest first; allowed: (distance, per cent), what predictions get on top of noise at a
    distance, as half of a 95 % interval; cuts: of the data, 0 where that rests on published sets alone.
    """

    points: tuple[ForecastPoint, ...]
    allowed: tuple[tuple[float, float], ...]
    cuts: int


def forecast_data(backtest: Mapping[str, Any] | None) -> ForecastData | None:
    """The backtest of a fit's document; None where there is none, or no cut left enough runs."""
    if not backtest or not backtest["forecasts"]:
        return None
    found = Backtest.from_document(backtest)
    points = [
        ForecastPoint(f.by, f.distance, _percent(f.error), _percent(f.expected), f.runs)
        for f in found.forecasts
    ]
    farthest = max(point.distance for point in points)
    span = np.linspace(farthest / _POINTS, 1.05 * farthest, _POINTS).tolist()
    allowed = tuple((distance, _percent(found.drift.reach(distance))) for distance in span)
    ordered = sorted(points, key=lambda point: (point.distance, point.by))
    return ForecastData(tuple(ordered), allowed, found.drift.cuts)


def draw_forecasts(axes: Axes, data: ForecastData) -> None:
    """A mark for each forecast, and a line from it to the dash that stands for noise alone."""
    axes.plot(*zip(*data.allowed, strict=True), color=INK, linestyle=DASHES, linewidth=1.2, alpha=0.75)
    for point in data.points:
        style = LOOK[point.by]
        axes.plot([point.distance] * 2, [point.noise, point.error], color=style.colour, lw=1.0, alpha=0.5)
        axes.plot([point.distance], [point.noise], "_", color=style.colour, markersize=9, mew=1.6)
        axes.plot([point.distance], [point.error], style.marker, color=style.colour, alpha=0.85)
    values = [value for point in data.points for value in (point.error, point.noise) if value > 0]
    if values and max(values) > _WIDE * min(values):
        axes.set_yscale("log")
        axes.set_ylim(0.7 * min(values), 1.5 * max(*values, data.allowed[-1][1]))
        log_axis(axes.yaxis, lambda value: f"{value:g}")
    else:
        axes.set_ylim(0.0, None)
    axes.set_xlim(0.0, data.allowed[-1][0])
    axes.set_xlabel("distance beyond the runs kept (factors of ten of N, D or 6ND)")
    axes.set_ylabel("error (per cent of the loss)")


def _percent(log_error: float) -> float:
    return 100 * log_error
