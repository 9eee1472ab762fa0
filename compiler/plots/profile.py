"""The profile map of a fit: the best objective at every pair of the law's first two searched parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from .data import Interval
from .fitted import interval_of, law_of
from .style import DASHES, INK, log_axis
from .text import greek, significant

Array = NDArray[np.float64]

LEVELS = ((1.0, 1.1, 1.3, 2.0, 4.0), (1.0, 2.0, 5.0, 20.0, 100.0), (1.0, 10.0, 100.0, 1e3, 1e4))
"""Ends of the shades, objectives as multiples of the optimum's: the narrowest that shade some cells."""

_ENOUGH = 6  # cells
_MARGIN = 2  # cells around those that are shaded

_OPTIMUM = "#D55E00"
_HUE = (0x00 / 255, 0x72 / 255, 0xB2 / 255)
# opacities, so that the map has no colour of its own far from the optimum
_SHADES = (0.85, 0.55, 0.32, 0.15)


@dataclass(frozen=True)
class ProfileData:
    """names: of the two parameters; first, second: their values; ratio: objectives [first][second] as
    multiples of the optimum's; valley: the second parameter that is best at each value of the first; best:
    the optimum, with the intervals of both; lowest: whether it is below every cell.
    """

    names: tuple[str, str]
    first: tuple[float, ...]
    second: tuple[float, ...]
    ratio: tuple[tuple[float, ...], ...]
    valley: tuple[float, ...]
    best: tuple[float, float]
    intervals: tuple[Interval | None, Interval | None]
    lowest: bool


def profile_data(fit: Mapping[str, Any]) -> ProfileData | None:
    """The map in a fit's document. None for a document without one, for a law that searches one parameter
    alone, and where the optimum has no distance from the runs.
    """
    certificate, optimum = fit.get("certificate"), fit.get("objective") or 0.0
    if not certificate or optimum <= 0 or min(len(certificate["alpha"]), len(certificate["beta"])) < 2:
        return None
    first, second = [p.name for p in law_of(fit).parameters if not p.is_coefficient][:2]
    if not {first, second} <= fit["parameters"].keys():
        return None  # a parameter with a value for every entry of a column has no single optimum
    cells = np.asarray(certificate["objective"], dtype=np.float64) / optimum
    given = fit.get("interval") or {}
    return ProfileData(
        names=(first, second),
        first=tuple(certificate["alpha"]),
        second=tuple(certificate["beta"]),
        ratio=tuple(tuple(row) for row in cells.tolist()),
        valley=tuple(certificate["beta"][column] for column in cells.argmin(axis=1)),
        best=(fit["parameters"][first], fit["parameters"][second]),
        intervals=(interval_of(given.get(first)), interval_of(given.get(second))),
        lowest=bool(certificate["below_every_cell"]),
    )


def draw_profile(axes: Axes, data: ProfileData) -> None:
    """Shades around the optimum, its intervals as a cross, and the valley dashed where it is inside them."""
    ratio, levels = np.maximum(np.array(data.ratio), 1.0), levels_of(data)
    filled = axes.contourf(
        _edges(data.first),
        _edges(data.second),
        ratio.repeat(2, axis=0).repeat(2, axis=1).T,
        levels=levels,
        colors=[(*_HUE, shade) for shade in _SHADES],
    )
    least = ratio.min(axis=1)
    inside = np.where(least <= levels[-1], data.valley, np.nan)
    axes.plot(data.first, inside, color=INK, linestyle=DASHES, linewidth=1.0, alpha=0.75)
    across, up = data.intervals
    if across is not None:
        axes.plot(across, [data.best[1]] * 2, color=_OPTIMUM, linewidth=2.0)
    if up is not None:
        axes.plot([data.best[0]] * 2, up, color=_OPTIMUM, linewidth=2.0)
    axes.plot([data.best[0]], [data.best[1]], "o", color=_OPTIMUM, markersize=7)
    shown = ratio <= levels[-1]
    axes.set_xlim(*_around(data.first, shown.any(axis=1)))
    axes.set_ylim(*_around(data.second, shown.any(axis=0)))
    for scaled, axis, values in (
        (axes.set_xscale, axes.xaxis, data.first),
        (axes.set_yscale, axes.yaxis, data.second),
    ):
        if values[0] > 0:
            scaled("log")
            log_axis(axis, lambda value: f"{value:g}")
    axes.set_xlabel(greek(data.names[0]))
    axes.set_ylabel(greek(data.names[1]))
    figure = axes.get_figure(root=False)
    if figure is not None:
        bar = figure.colorbar(filled, ax=axes, ticks=levels, format=FuncFormatter(lambda v, _: f"{v:g}"))
        bar.set_label("objective, times that of the optimum")
        bar.outline.set_linewidth(0.5)


def levels_of(data: ProfileData) -> tuple[float, ...]:
    """The first of LEVELS that shades enough cells."""
    ratio = np.array(data.ratio)
    return next((levels for levels in LEVELS if (ratio <= levels[-1]).sum() >= _ENOUGH), LEVELS[-1])


def _edges(values: Sequence[float]) -> Array:
    """Both edges of the cell around each value, so that a shade covers whole cells and nothing between."""
    logs = values[0] > 0
    middles = np.log(values) if logs else np.array(values)
    between = (middles[1:] + middles[:-1]) / 2
    ends = np.concatenate([[2 * middles[0] - between[0]], between, [2 * middles[-1] - between[-1]]])
    gap = 1e-6 * (ends[1:] - ends[:-1])
    edges = np.stack([ends[:-1] + gap, ends[1:] - gap], axis=1).ravel()
    return np.asarray(np.exp(edges) if logs else edges)


def _around(values: Sequence[float], shown: NDArray[np.bool_]) -> Interval:
    """From the first cell that is shown to the last."""
    edges, places = _edges(values), np.flatnonzero(shown)
    first, last = (places[0], places[-1]) if len(places) else (0, len(values) - 1)
    first, last = max(first - _MARGIN, 0), min(last + _MARGIN, len(values) - 1)
    return float(edges[2 * first]), float(edges[2 * last + 1])


def optimum_text(data: ProfileData) -> str:
    """The optimum in words."""
    return ", ".join(
        f"{greek(name)} = {significant(value, 3)}" for name, value in zip(data.names, data.best, strict=True)
    )
