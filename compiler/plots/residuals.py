"""Residuals by representation: where the law is off, and whether it is off for one format only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from .agreement import AgreementPoint
from .style import DASHES, HELD_OUT_MARKER, INK, Style
from .text import label


@dataclass(frozen=True)
class ResidualRow:
    """One representation: measured minus law, in per cent of the law's loss.

    percent: runs the fit has seen; held_out: runs it has not.
    """

    representation: str
    percent: tuple[float, ...]
    held_out: tuple[float, ...]


def residual_rows(points: Sequence[AgreementPoint]) -> tuple[ResidualRow, ...]:
    """Rows in the order in which representations first appear; positive: the measured loss is higher."""
    rows = []
    for name in dict.fromkeys(point.representation for point in points):
        own = [point for point in points if point.representation == name]
        rows.append(
            ResidualRow(
                name,
                tuple(_percent(point) for point in own if not point.held_out),
                tuple(_percent(point) for point in own if point.held_out),
            )
        )
    return tuple(rows)


def draw_residuals(axes: Axes, rows: Sequence[ResidualRow], look: Mapping[str, Style]) -> None:
    """One line of points per representation, the first on top."""
    axes.axvline(0.0, color=INK, linewidth=1.0, linestyle=DASHES, alpha=0.75)
    for place, row in enumerate(rows):
        style = look[row.representation]
        axes.plot(row.percent, [place] * len(row.percent), style.marker, color=style.colour, alpha=0.7)
        axes.plot(
            row.held_out, [place] * len(row.held_out), HELD_OUT_MARKER, color=style.colour, markersize=14
        )
    axes.set_yticks(range(len(rows)), [label(row.representation) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("measured minus law (per cent of the law's loss)")
    widest = max((abs(value) for row in rows for value in row.percent + row.held_out), default=1.0)
    axes.set_xlim(-1.15 * (widest or 1.0), 1.15 * (widest or 1.0))


def _percent(point: AgreementPoint) -> float:
    return 100.0 * (point.measured / point.predicted - 1.0)
