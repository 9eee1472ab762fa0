"""Predicted against measured loss, with what was held back from the fit standing out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from ...runtime.units import TEXT, Units
from .data import Interval, PredictionRow, RunRow
from .fitted import FittedLaw
from .style import DASHES, HELD_OUT_MARKER, INK, Style


@dataclass(frozen=True)
class AgreementPoint:
    """One run: measured loss and the law's; interval, where it was predicted first."""

    representation: str
    measured: float
    predicted: float
    interval: Interval | None
    held_out: bool


def agreement(
    runs: Sequence[RunRow], predictions: Sequence[PredictionRow], law: FittedLaw | None
) -> tuple[AgreementPoint, ...]:
    """Runs the fit has seen with the law's loss, then predictions that were measured."""
    points = []
    for run in runs:
        loss = None if law is None or run.held_out else law.loss_of(run)
        if loss is not None:
            points.append(AgreementPoint(run.representation, run.loss, loss, None, held_out=False))
    for row in predictions:
        if row.measured is not None:
            points.append(
                AgreementPoint(row.representation, row.measured, row.predicted, row.interval, held_out=True)
            )
    return tuple(points)


def draw_agreement(
    axes: Axes, points: Sequence[AgreementPoint], look: Mapping[str, Style], units: Units = TEXT
) -> None:
    """Points around the identity line; predictions as stars with their 95% intervals, drawn last."""
    ends = [end for point in points for end in (point.measured, point.predicted, *(point.interval or ()))]
    ends = [end for end in ends if math.isfinite(end)]
    margin = 0.05 * (max(ends) - min(ends) or 1.0)
    low, high = min(ends) - margin, max(ends) + margin
    axes.plot([low, high], [low, high], color=INK, linewidth=1.0, linestyle=DASHES, alpha=0.75)
    for point in sorted(points, key=lambda point: point.held_out):
        style = look[point.representation]
        if point.held_out and point.interval is not None:
            axes.plot(
                [point.measured] * 2, point.interval, "_-", color=style.colour, linewidth=2.0, markersize=9
            )
        axes.plot(
            [point.measured],
            [point.predicted],
            HELD_OUT_MARKER if point.held_out else style.marker,
            color=style.colour,
            markersize=15 if point.held_out else 5.5,
            alpha=1.0 if point.held_out else 0.75,
        )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel(f"measured loss{units.loss_in_brackets}")
    axes.set_ylabel(f"loss by the law{units.loss_in_brackets}")
