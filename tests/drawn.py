"""What tests of figures have in common: axes to draw on, and what stands on them."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def axes_of(count: int = 1) -> list[Axes]:
    return list(Figure().subplots(1, count, squeeze=False).flat)


def lines(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [
        ([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]) for line in axes.lines
    ]


def dots(axes: Axes, marker: str) -> list[tuple[float, float]]:
    """Where single marks of a kind stand."""
    return [
        (float(x), float(y))
        for line in axes.lines
        if line.get_marker() == marker and len(line.get_xdata()) == 1
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]
