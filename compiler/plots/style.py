"""The look of figures: colours, markers, axes. One style per representation, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .text import label, short_count

INK = "#0a0b0c"
"""Text, axes and the dense baseline. Inline SVG turns it into the colour of the page's text."""

# Okabe and Ito (2008), without black (that is INK) and without yellow, which vanishes on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
# Seven of them: with six colours, 42 pairs pass before one comes back. The star is kept for what was held back.
_MARKERS = ("s", "^", "D", "v", "P", "X", "p")
HELD_OUT_MARKER = "*"

_SETTINGS: dict[str, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so text is measured alike everywhere
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "axes.titlesize": 10.5,
    "legend.fontsize": 10.0,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "lines.markersize": 6.0,
    "lines.linewidth": 1.5,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "svg.hashsalt": "rhoc",
}


@dataclass(frozen=True)
class Style:
    """How one representation looks."""

    colour: str
    marker: str


@contextmanager
def theme() -> Iterator[None]:
    """Our matplotlib settings while a figure is made and written, and nowhere else."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        matplotlib.rcParams.update(_SETTINGS)
        yield


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name in order; `dense` has the colour of text and a circle, whatever its place."""
    others = [name for name in dict.fromkeys(names) if name != "dense"]
    chosen = {
        name: Style(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(others)
    }
    return {"dense": Style(INK, "o"), **chosen}


def count_axis(axis: Axis) -> None:
    """Ticks of a logarithmic count axis as 1, 2 and 5 times powers of ten, written 20k, 50k, 1M."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def marker_handle(style: Style, name: str, *, held_out: bool = False, line: bool = False) -> Line2D:
    """A legend entry for a representation."""
    return Line2D(
        [],
        [],
        color=style.colour,
        marker=HELD_OUT_MARKER if held_out else style.marker,
        markersize=12 if held_out else 6,
        linestyle="-" if line else "none",
        label=f"{label(name)}, held back" if held_out else label(name),
    )


def legend_below(axes: Axes, handles: list[Line2D], columns: int = 4) -> None:
    """A legend under the whole figure, where it hides no data."""
    figure = axes.get_figure(root=True)
    if figure is not None and handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)))
