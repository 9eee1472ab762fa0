"""Error against stored bits: every format under Shannon's bound, and the ones that nothing else beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .style import DASHES, INK, Style

_NAMED_AT_MOST = 14
_LOWEST = -2.1  # Gaussian bits below the limit that the figure shows


@dataclass(frozen=True)
class RatePoint:
    """A format by its stored bits per weight and its Gaussian bits, log_{1/4} GMSE."""

    name: str
    bits: float
    gaussian_bits: float
    kind: str
    best: bool  # no other format has as many Gaussian bits in as few stored ones; of equals, the first name


@dataclass(frozen=True)
class RateData:
    """Points of the figure, and the end of both axes."""

    points: tuple[RatePoint, ...]
    most_bits: float


def rate_points(rows: Sequence[Mapping[str, Any]], most_bits: float = 8.5) -> RateData:
    """Rows of `rhoc specs ls` (name, kind, bits_per_weight, gaussian_bits) up to `most_bits` stored bits."""
    shown = [r for r in rows if r["gmse"] > 0 and r["bits_per_weight"] <= most_bits]
    points, most = [], -math.inf
    for row in sorted(shown, key=lambda r: (r["bits_per_weight"], -r["gaussian_bits"], r["name"])):
        bits, gaussian = row["bits_per_weight"], row["gaussian_bits"]
        points.append(RatePoint(row["name"], bits, gaussian, row["kind"], gaussian > most))
        most = max(most, gaussian)
    return RateData(tuple(points), most_bits)


def draw_rate(axes: Axes, data: RateData, look: Mapping[str, Style]) -> None:
    """What is lost against Shannon's limit, over stored bits: zero is the bound, lower is worse."""
    axes.axhline(0.0, color=INK, linestyle=DASHES, linewidth=1.2, alpha=0.75)
    for kind, style in look.items():
        points = [point for point in data.points if point.kind == kind]
        if points:
            axes.plot(
                [p.bits for p in points],
                [p.gaussian_bits - p.bits for p in points],
                linestyle="none",
                marker=style.marker,
                color=style.colour,
                label=kind,
            )
    best = [point for point in data.points if point.best]
    _name(axes, best)
    axes.set_xlim(0.0, data.most_bits)
    axes.set_ylim(_LOWEST, 0.12)
    hidden = sum(point.gaussian_bits - point.bits < _LOWEST for point in data.points)
    below = f"; {hidden} formats lie below" if hidden else ""
    axes.set_xlabel(f"stored bits per weight (named: nothing shipped beats it{below})")
    axes.set_ylabel("Gaussian bits − stored bits (0: Shannon's limit)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5)


def _name(axes: Axes, best: Sequence[RatePoint]) -> None:
    """Names beside the points that nothing beats, thinned out where they are many."""
    chosen = np.unique(np.linspace(0, max(len(best) - 1, 0), _NAMED_AT_MOST).round().astype(int))
    for step, index in enumerate(chosen[: len(best)]):
        point = best[index]
        offset = (4, 6 if step % 2 else -12)
        axes.annotate(
            point.name,
            (point.bits, point.gaussian_bits - point.bits),
            xytext=offset,
            textcoords="offset points",
            fontsize=8,
        )
