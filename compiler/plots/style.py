"""The look of figures: colours, markers, axes. One style per representation, the same in every figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .text import power_of_ten, short_count

INK = "#0a0b0c"
"""Text, axes and the dense baseline. Inline SVG turns it into the colour of the page's text."""

# Okabe and Ito (2008), without black (that is INK) and without yellow, which vanishes on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
# Seven of them: with six colours, 42 pairs pass before one comes back. The star is for what was held back.
_MARKERS = ("s", "^", "D", "v", "P", "X", "p")
HELD_OUT_MARKER = "*"

DASHES = (0.0, (5.0, 3.0))
"""The line style of what was not fitted: identity lines, published curves, predictions."""

_MOST_TICKS = 8
# Leading digits of ticks on a logarithmic axis, sparsest first.
_TICK_DIGITS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))

_SETTINGS: dict[Any, Any] = {
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
    """Ticks of a logarithmic count axis, written 30k, 100k, 1M. Call it when everything is drawn."""
    log_axis(axis, short_count)


def flops_axis(axis: Axis) -> None:
    """The same for numbers beyond all prefixes, written 10²⁰."""
    log_axis(axis, power_of_ten)


def log_axis(axis: Axis, shown: Callable[[float], str]) -> None:
    """A few round ticks on a logarithmic axis, each written by `shown`."""
    ticks = count_ticks(*axis.get_view_interval())
    axis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axis.set_minor_locator(NullLocator())


def count_ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high], as sparse as leaves three of them; one at least."""
    found: list[float] = []
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in _TICK_DIGITS:
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 3:
            break
    return found or [float(f"{math.sqrt(low * high):.1e}")]
