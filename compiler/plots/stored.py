"""Loss against stored bits: packed models as they are, and trained in their format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .data import StoredPoint
from .legend import Entry, legend_below, rows
from .sketch import LEGEND_ROW, Sketch
from .style import DASHES, INK, Style, log_axis

LOOKS = {
    "as it is": Style("#E69F00", "^"),
    "trained": Style("#0072B2", "s"),
    "scratch": Style("#CC79A7", "D"),
}
_SAID = {"as it is": "as it is", "trained": "trained in the format", "scratch": "trained so from scratch"}
_HIGHEST = 3.0  # dense losses above the dense one that the figure reaches
_NEXT_NAME = 1.13  # times the bits of the last point with a name
_TICKS = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 32)


@dataclass(frozen=True)
class StoredData:
    """Points of the figure; `best`: no other of the same kind has as little loss in as few bits."""

    points: tuple[StoredPoint, ...]
    best: tuple[StoredPoint, ...]
    dense: float | None
    highest: float
    hidden: int


def stored_data(points: Sequence[StoredPoint]) -> StoredData | None:
    """What is drawn of packed models; None when there are none besides dense ones."""
    kept = [point for point in points if point.name != "dense"]
    if not kept:
        return None
    losses = [point.loss for point in points if point.name == "dense"]
    dense = min(losses, default=None)
    least = min(point.loss for point in points)
    highest = (dense or least) * (1 + _HIGHEST)
    shown = [point for point in kept if point.loss <= highest]
    best = [point for how in LOOKS for point in front(p for p in shown if p.how == how)]
    return StoredData(tuple(shown), tuple(best), dense, highest, len(kept) - len(shown))


def front(points: Iterable[StoredPoint]) -> list[StoredPoint]:
    """Those that no other one equals or beats in bits and loss both, fewest bits first; of equals, one."""
    best: list[StoredPoint] = []
    for point in sorted(points, key=lambda p: (p.bits, p.loss, p.name)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def draw_stored(axes: Axes, data: StoredData) -> None:
    """Loss over bits, both logarithmic; a line through what nothing beats of each kind, with names."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if data.dense is not None:
        axes.axhline(data.dense, color=INK, linestyle=DASHES, linewidth=1.2, alpha=0.75)
    for how, look in LOOKS.items():
        points = [point for point in data.points if point.how == how]
        spread = [point.spread or 0.0 for point in points]
        axes.errorbar(
            [p.bits for p in points], [p.loss for p in points], yerr=spread, linestyle="none",
            marker=look.marker, markersize=4.5, color=look.colour, elinewidth=0.8, alpha=0.9,
        )  # fmt: skip
        best = front(points)
        axes.plot([p.bits for p in best], [p.loss for p in best], color=look.colour, linewidth=1.0, alpha=0.6)
    _name([point for point in data.best if point.how != "scratch"], axes)
    bits = [point.bits for point in data.points]
    axes.set_xlim(min(bits) / 1.5, max(bits) * 1.3)
    _ticks(axes, min(bits) / 1.5, max(bits) * 1.3)
    hidden = f" ({data.hidden} lie above)" if data.hidden else ""
    axes.set_xlabel("stored bits for each represented number, tables and scales counted")
    axes.set_ylabel(f"validation loss{hidden}")


def stored_sketch(points: Sequence[StoredPoint]) -> Sketch | None:
    """The figure, laid out; None for nothing to draw."""
    data = stored_data(points)
    if data is None:
        return None
    found = data
    hows = [how for how in LOOKS if any(point.how == how for point in found.points)]
    entries = [Entry(_SAID[how], LOOKS[how], line=True) for how in hows]
    entries += [Entry("dense", line=True, dashed=True)] if found.dense is not None else []

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        draw_stored(axes, found)
        legend_below(axes, entries)

    lead = "Down and to the left is better: less loss in fewer stored bits."
    key = "Lines join what nothing of their kind beats. Bars: standard deviation over seeds."
    height = 5.2 + LEGEND_ROW * rows(entries)
    return Sketch(draw, "Loss of packed models against stored bits", lead, key, height=height)


def _name(points: Sequence[StoredPoint], axes: Axes) -> None:
    for point in _apart(points):
        above = point.how == "as it is"
        axes.annotate(
            point.name, (point.bits, point.loss), xytext=(3, 5) if above else (-3, -5),
            textcoords="offset points", fontsize=7, rotation=30, color=LOOKS[point.how].colour,
            ha="left" if above else "right", va="bottom" if above else "top", rotation_mode="anchor",
        )  # fmt: skip


def _apart(points: Sequence[StoredPoint]) -> list[StoredPoint]:
    """Those whose names do not lie on one another: of neighbours of one kind, the one with fewer bits."""
    kept: dict[str, StoredPoint] = {}
    named = []
    for point in points:
        before = kept.get(point.how)
        if before is None or point.bits >= _NEXT_NAME * before.bits:
            kept[point.how] = point
            named.append(point)
    return named


def _ticks(axes: Axes, low: float, high: float) -> None:
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    log_axis(axes.yaxis, lambda value: f"{value:g}")
