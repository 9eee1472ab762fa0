"""Loss while training: one panel per representation, one line per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes

from ...runtime.units import TEXT, Units
from .data import CurvePoint, RunRow, representations
from .style import HELD_OUT_MARKER, INK, Style, count_axis
from .text import label

BINS = 40
"""A line has at most this many points, each the mean over an equal share of the recorded steps."""

SKIPPED = 0.05
"""The first part of training, by tokens, that is left out: the fall from guessing would flatten the rest."""


@dataclass(frozen=True)
class Curve:
    """One run: smoothed training loss by tokens seen, and the validation loss it ended at."""

    run: str
    params: int
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    end_tokens: int
    end_loss: float


@dataclass(frozen=True)
class CurvePanel:
    """All runs of one representation, smallest model first."""

    representation: str
    curves: tuple[Curve, ...]
    held_out: bool


def loss_curves(runs: Sequence[RunRow]) -> tuple[CurvePanel, ...]:
    """Panels of runs that recorded their training loss; a representation without such a run has none."""
    recorded = [run for run in runs if run.train_curve]
    panels = []
    for name in representations((), recorded):
        own = sorted(
            (run for run in recorded if run.representation == name), key=lambda run: (run.params, run.tokens)
        )
        panels.append(CurvePanel(name, tuple(_curve(run) for run in own), all(run.held_out for run in own)))
    return tuple(panels)


def draw_loss_curves(
    axes: Sequence[Axes], panels: Sequence[CurvePanel], look: Mapping[str, Style], units: Units = TEXT
) -> None:
    """One panel on each of `axes`, which share both scales. Thicker lines are larger models."""
    sizes = sorted({curve.params for panel in panels for curve in panel.curves})
    for place, panel in zip(axes, panels, strict=True):
        style = look[panel.representation]
        marker, size = (HELD_OUT_MARKER, 9.0) if panel.held_out else (style.marker, 4.5)
        for curve in panel.curves:
            width = 0.8 + 1.6 * sizes.index(curve.params) / max(1, len(sizes) - 1)
            place.plot(curve.tokens, curve.loss, color=style.colour, linewidth=width, alpha=0.8)
            place.plot([curve.end_tokens], [curve.end_loss], marker, color=style.colour, markersize=size)
        name = f"{label(panel.representation, 13)} (held back)" if panel.held_out else panel.representation
        place.set_title(label(name, 24), color=INK)
        place.set_xscale("log")
    for place in axes:
        count_axis(place.xaxis)
        place.set_xlabel(f"training {units.budget}")
        place.set_ylabel(f"loss{units.loss_in_brackets}")
        place.label_outer(remove_inner_ticks=False)


def _curve(run: RunRow) -> Curve:
    points = [point for point in run.train_curve if point[1] >= SKIPPED * run.train_curve[-1][1]]
    bins = _bins(points)
    return Curve(
        run=run.id,
        params=run.params,
        tokens=tuple(sum(point[1] for point in part) / len(part) for part in bins),
        loss=tuple(sum(point[2] for point in part) / len(part) for part in bins),
        end_tokens=run.tokens,
        end_loss=run.loss,
    )


def _bins(points: Sequence[CurvePoint]) -> list[Sequence[CurvePoint]]:
    """The points in order, cut into at most BINS parts whose sizes differ by one at most."""
    parts = min(BINS, len(points))
    cuts = [len(points) * i // parts for i in range(parts + 1)]
    return [points[low:high] for low, high in pairwise(cuts)]
