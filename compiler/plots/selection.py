"""A selection: laws by the error of their forecasts of the largest runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from .style import INK, log_axis
from .text import label

CHOSEN = "#D55E00"
STEP_MARKERS = ("s", "D")
_WIDE = 10.0


@dataclass(frozen=True)
class LawRow:
    """A law: forecast errors in per cent of the loss, over all steps and at each; weight: in averages."""

    law: str
    error: float | None
    steps: tuple[float, ...]
    weight: float
    chosen: bool


def law_rows(selection: Mapping[str, Any]) -> tuple[LawRow, ...]:
    """Laws of a selection's document, those that forecast best first, those that cannot be tested last."""
    rows = [
        LawRow(
            law=each["law"],
            error=None if each["forecast"] is None else 100 * each["forecast"],
            steps=tuple(100 * error for error in each["forecast_errors"]),
            weight=each["weight"],
            chosen=each["law"] == selection["law"],
        )
        for each in selection["laws"]
    ]
    return tuple(sorted(rows, key=lambda row: (row.error is None, row.error or 0.0, not row.chosen)))


def draw_selection(axes: Axes, rows: tuple[LawRow, ...]) -> None:
    """A dot per law with its errors at each step; the chosen one stands out."""
    values = [value for row in rows for value in (*row.steps, *([row.error] if row.error else []))]
    for place, row in enumerate(rows):
        colour = CHOSEN if row.chosen else INK
        if row.error is None:
            axes.annotate(
                "too few runs to test it", (0.02, place), xycoords=("axes fraction", "data"), va="center"
            )
            continue
        axes.plot(row.steps, [place] * len(row.steps), "-", color=colour, lw=1.0, alpha=0.5)
        for marker, step in zip(STEP_MARKERS, row.steps, strict=False):
            axes.plot([step], [place], marker, color=colour, markersize=5, alpha=0.6, mew=0)
        axes.plot([row.error], [place], "o", color=colour, markersize=8 if row.chosen else 6)
    names = [f"{label(row.law)} (weight {row.weight:.2f})" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if values and min(values) > 0 and max(values) > _WIDE * min(values):
        axes.set_xscale("log")
        log_axis(axes.xaxis, lambda value: f"{value:g}")
    else:
        axes.set_xlim(0.0, 1.08 * max(values, default=1.0))
    axes.set_xlabel("error of forecasts of the runs left out (per cent of the loss)")
