"""Parameters and multipliers of a fit with their intervals, and published values beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from .data import Interval
from .fitted import interval_of
from .style import DASHES, HELD_OUT_MARKER, INK, Style, log_axis
from .text import greek, label, significant

_WIDEST = 30.0  # factors from the fitted value beyond which a whisker is cut off, and an arrow stands
_NORMAL = 1.96  # standard errors of a 95 % interval
_PUBLISHED_COLOUR = "#D55E00"


@dataclass(frozen=True)
class IntervalRow:
    """A number of a fit; interval: 95 %; published: its value in a published fit."""

    name: str
    value: float
    interval: Interval | None
    published: float | None = None


def parameter_rows(fit: Mapping[str, Any]) -> tuple[IntervalRow, ...]:
    """The parameters of a fit's document."""
    given = fit.get("interval") or {}
    return tuple(
        IntervalRow(name, value, interval_of(given.get(name))) for name, value in fit["parameters"].items()
    )


def rho_rows(fit: Mapping[str, Any]) -> tuple[IntervalRow, ...]:
    """The multipliers of a fit's document, the most first."""
    found = [
        IntervalRow(name, entry["value"], interval_of(entry.get("interval")))
        for name, entry in (fit.get("rho") or {}).items()
    ]
    return tuple(sorted(found, key=lambda row: -row.value))


def checked_rows(check: Mapping[str, Any]) -> tuple[IntervalRow, ...]:
    """Constants and multipliers of a row of `rhoc fit --check-published`.

    Intervals are 1.96 standard errors of the logarithm.
    """
    found = []
    for name, cell in {**check["constants"], **check["multipliers"]}.items():
        value, error = cell["ours"], cell["standard_error"]
        if error != 0:  # the baseline's multiplier is 1 for both
            ends = None if error is None or value <= 0 else _by_error(value, error)
            found.append(IntervalRow(name, value, ends, cell["published"]))
    return tuple(found)


def draw_ratios(axes: Axes, rows: Sequence[IntervalRow]) -> None:
    """Each row against its own value: 1 is the fit, a whisker its interval, a star the published value."""
    axes.axvline(1.0, color=INK, linestyle=DASHES, linewidth=1.0, alpha=0.75)
    for place, row in enumerate(rows):
        if row.value > 0:
            _draw_ratio(axes, place, row)
        else:
            axes.annotate("0, at its bound", (1.0, place), (8, 0), textcoords="offset points", va="center")
    _name_rows(axes, [f"{label(greek(row.name), 22)} = {significant(row.value)}" for row in rows])
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 1.25))
    log_axis(axes.xaxis, lambda value: f"{value:g}")
    axes.set_xlabel("as a multiple of the fitted value")


def draw_rho(axes: Axes, rows: Sequence[IntervalRow], look: Mapping[str, Style]) -> None:
    """Multipliers from 0 up, with their intervals."""
    axes.axvline(1.0, color=INK, linestyle=DASHES, linewidth=1.0, alpha=0.75)
    for place, row in enumerate(rows):
        style = look[row.name]
        low, high = row.interval or (row.value, row.value)
        axes.plot([low, high], [place, place], "|-", color=style.colour, linewidth=2.0, markersize=8)
        axes.plot([row.value], [place], style.marker, color=style.colour)
    _name_rows(axes, [label(row.name) for row in rows])
    axes.set_xlim(0.0, max(1.05, axes.get_xlim()[1]))
    axes.set_xlabel("ρ: dense parameters per parameter")


def _draw_ratio(axes: Axes, place: int, row: IntervalRow) -> None:
    ends = row.interval or (row.value, row.value)
    low, high = (_within(end / row.value) for end in ends)
    axes.plot([low, high], [place, place], color=INK, linewidth=2.0, alpha=0.75)
    for end, cut, whole in ((low, "<", ends[0]), (high, ">", ends[1])):
        axes.plot([end], [place], "|" if end == whole / row.value else cut, color=INK, markersize=8)
    if row.published is not None and row.published > 0:
        at = _within(row.published / row.value)
        axes.plot([at], [place], HELD_OUT_MARKER, color=_PUBLISHED_COLOUR, markersize=13)
    axes.plot([1.0], [place], "o", color=INK, markersize=4.5)


def _by_error(value: float, error: float) -> Interval:
    factor = math.exp(min(_NORMAL * error / value, 700.0))
    return value / factor, value * factor


def _within(ratio: float) -> float:
    return (
        min(max(ratio, 1 / _WIDEST), _WIDEST) if math.isfinite(ratio) else math.copysign(1, ratio) * _WIDEST
    )


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)


PUBLISHED_STYLE = Style(_PUBLISHED_COLOUR, HELD_OUT_MARKER)
