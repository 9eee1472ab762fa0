"""A legend under a figure: entries as data, laid out in as many columns as their names leave room for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .style import DASHES, HELD_OUT_MARKER, INK, Style
from .text import label

_MOST_COLUMNS = 4
_WIDTH = 84  # characters in a row of the page's figures
_HANDLE = 7  # characters that marker and spacing take


@dataclass(frozen=True)
class Entry:
    """What a legend says: a text, the marker of `style` if any, and a line, dashed or not."""

    text: str
    style: Style | None = None
    held_out: bool = False
    line: bool = False
    dashed: bool = False

    def handle(self) -> Line2D:
        """The mark as matplotlib draws it."""
        handle = Line2D([], [], color=INK if self.style is None else self.style.colour, label=self.text)
        handle.set_linestyle((DASHES if self.dashed else "-") if self.line else "none")
        if self.style is not None:
            handle.set_marker(HELD_OUT_MARKER if self.held_out else self.style.marker)
            handle.set_markersize(12 if self.held_out else 6)
        return handle


def entry(name: str, style: Style, *, held_out: bool = False, line: bool = False) -> Entry:
    """The entry of a representation; the line of what was held back is dashed."""
    text = f"{label(name)}, held back" if held_out else label(name)
    return Entry(text, style, held_out, line, dashed=held_out)


def columns(entries: Sequence[Entry]) -> int:
    """How many columns fit; matplotlib fills them one after the other."""
    for count in range(min(_MOST_COLUMNS, len(entries)), 1, -1):
        rows = math.ceil(len(entries) / count)
        parts = [entries[i : i + rows] for i in range(0, len(entries), rows)]
        if sum(max(len(e.text) for e in part) + _HANDLE for part in parts) <= _WIDTH:
            return len(parts)
    return 1


def rows(entries: Sequence[Entry]) -> int:
    """How many rows that makes."""
    return math.ceil(len(entries) / columns(entries))


def legend_below(axes: Axes, entries: Sequence[Entry]) -> None:
    """A legend under the figure, or part of one, that `axes` stand in, where it hides no data."""
    figure = axes.get_figure(root=False)
    if figure is not None and entries:
        handles = [e.handle() for e in entries]
        figure.legend(handles=handles, loc="outside lower center", ncols=columns(entries))
