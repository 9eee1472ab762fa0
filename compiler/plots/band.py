"""A line with the 95 % interval of the draws behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .style import Style

Array = NDArray[np.float64]

SHADE = 0.16
"""Opacity of bands and of the range of the data: lines and grid show through."""


@dataclass(frozen=True)
class Band:
    """Values along an axis and their 95 % intervals; low and high are empty where there are no draws."""

    value: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def band_of(rows: Array) -> Band:
    """Of rows [1 + draws, places]: row 0 is the value. What is infinite becomes a gap."""
    finite = np.where(np.isfinite(rows), rows, np.nan)
    value = tuple(finite[0].tolist())
    if len(finite) < 3 or np.isnan(finite).any():
        return Band(value)
    low, high = np.quantile(finite[1:], [0.025, 0.975], axis=0)
    return Band(value, tuple(low.tolist()), tuple(high.tolist()))


def draw_band(axes: Axes, places: Sequence[float], band: Band, style: Style, *, marker: bool = False) -> None:
    """The line, and its interval shaded."""
    if band.low:
        axes.fill_between(places, band.low, band.high, color=style.colour, alpha=SHADE, linewidth=0)
    every = max(1, len(places) // 5)
    axes.plot(
        places, band.value, color=style.colour, marker=style.marker if marker else "", markevery=every,
        markersize=5,
    )  # fmt: skip
