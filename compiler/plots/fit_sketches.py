"""Figures of a fit, laid out: map, intervals, backtest, and the choice among laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import FigureBase

from .forecasts import CUTS, LOOK, draw_forecasts, forecast_data
from .intervals import (
    PUBLISHED_STYLE,
    IntervalRow,
    checked_rows,
    draw_ratios,
    draw_rho,
    parameter_rows,
    rho_rows,
)
from .legend import Entry, legend_below, rows
from .profile import draw_profile, optimum_text, profile_data
from .selection import STEP_MARKERS, draw_selection, law_rows
from .sketch import LEGEND_ROW, Sketch
from .style import INK, Style, styles

_ROW = 0.27  # inches
_MOST_CHECKS = 6


def fit_sketches(fit: Mapping[str, Any]) -> list[Sketch]:
    """What a fit's document has data for; `selection` in it is how its law was chosen."""
    found = (
        selection_sketch(fit["selection"]) if fit.get("selection") else None,
        profile_sketch(fit),
        parameters_sketch(fit),
        rho_sketch(fit, styles(fit.get("rho") or ())),
        forecasts_sketch(fit),
    )
    return [sketch for sketch in found if sketch is not None]


def profile_sketch(fit: Mapping[str, Any]) -> Sketch | None:
    """The profile map, or None without one."""
    data = profile_data(fit)
    if data is None:
        return None

    def draw(figure: FigureBase) -> None:
        draw_profile(figure.subplots(), data)

    where = "below" if data.lowest else "NOT below"
    crossed = " with its 95% intervals as a cross" if any(data.intervals) else ""
    return Sketch(
        draw,
        title="Profile map of the fit",
        lead=(
            f"The fit, at {optimum_text(data)}, lies {where} every cell of the map. Where the dark cells "
            "make a long band, the runs do not tell the two apart."
        ),
        key=f"Dot: the fit{crossed}. Dashed: the best of the second parameter for each of the first.",
    )


def parameters_sketch(fit: Mapping[str, Any]) -> Sketch | None:
    """Intervals of the parameters, or None when there are no intervals."""
    found = parameter_rows(fit)
    if not any(row.interval for row in found):
        return None

    def draw(figure: FigureBase) -> None:
        draw_ratios(figure.subplots(), found)

    return Sketch(
        draw,
        title="Parameters of the law with intervals",
        lead="The shorter the whisker, the better the runs know a parameter.",
        key="Whiskers are 95% intervals, relative to the fitted value; arrows go on beyond a factor of 30.",
        height=0.9 + _ROW * len(found),
    )


def rho_sketch(fit: Mapping[str, Any], look: Mapping[str, Style]) -> Sketch | None:
    """Intervals of the multipliers, or None when the law has none."""
    found = rho_rows(fit)
    if len(found) < 2:
        return None

    def draw(figure: FigureBase) -> None:
        draw_rho(figure.subplots(), found, look)

    whiskers = "Whiskers are 95% intervals." if any(row.interval for row in found) else ""
    return Sketch(
        draw,
        title="rho by format with intervals",
        lead="Formats whose whiskers overlap may be worth the same.",
        key=f"{whiskers} Dashed: a dense parameter.".strip(),
        height=0.9 + _ROW * len(found),
    )


def checks_sketches(checks: Sequence[Mapping[str, Any]]) -> list[Sketch]:
    """Published constants beside those fitted here, a figure for each of the nearest published fits."""
    named = [(check["fit"], checked_rows(check)) for check in checks]
    return [_check(name, found) for name, found in named if found][:_MOST_CHECKS]


def _check(name: str, found: Sequence[IntervalRow]) -> Sketch:
    entries = [Entry("fitted to these runs", Style(INK, "o")), Entry("published", PUBLISHED_STYLE)]

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        draw_ratios(axes, found)
        legend_below(axes, entries)

    return Sketch(
        draw,
        title=f"Published constants of {name}",
        lead=f"{name}: a star outside the whisker is a constant that these runs contradict.",
        key="Whiskers: 1.96 standard errors.",
        height=0.9 + _ROW * len(found) + LEGEND_ROW,
    )


def forecasts_sketch(fit: Mapping[str, Any]) -> Sketch | None:
    """Errors of forecasts inside the data, or None without a backtest."""
    data = forecast_data(fit.get("backtest"))
    if data is None:
        return None
    shown = dict.fromkeys(point.by for point in data.points)
    entries = [Entry(CUTS[by], LOOK[by]) for by in shown]
    entries.append(Entry("what intervals allow for, 95%", line=True, dashed=True))

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        draw_forecasts(axes, data)
        legend_below(axes, entries)

    missed = sum(point.error > point.noise for point in data.points)
    rests = "" if data.cuts else " These runs were too few for it: it rests on published sets."
    return Sketch(
        draw,
        title="Forecast error against distance beyond the data",
        lead=f"{missed} of {len(data.points)} forecasts missed by more than the noise of the runs explains.",
        key=(
            "Each mark: the root mean square error of runs left out and forecast from the others; its dash: "
            "what noise alone explains. "
            f"Dashed line: what predictions beyond the data add to their intervals.{rests}"
        ),
        height=4.0 + LEGEND_ROW * rows(entries),
    )


def selection_sketch(selection: Mapping[str, Any]) -> Sketch:
    """Laws by held-out error."""
    found = law_rows(selection)
    entries = [Entry("all together", Style(INK, "o"))]
    entries += [
        Entry(f"{step['runs_left_out']} runs left out", Style(INK, marker))
        for marker, step in zip(STEP_MARKERS, selection["steps"], strict=False)
    ]

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        draw_selection(axes, found)
        if any(row.error is not None for row in found):
            legend_below(axes, entries)

    return Sketch(
        draw,
        title="Laws by the error of their forecasts",
        lead=f"Chosen: {selection['reason']}.",
        key="The largest budgets were left out and forecast from the others. In colour: the chosen law.",
        height=0.9 + _ROW * len(found) + LEGEND_ROW,
    )
