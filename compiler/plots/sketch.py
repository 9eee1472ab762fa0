"""A figure ready to be drawn: on the report's page or in a file of its own."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from ...runtime.errors import RequestError
from .style import theme
from .svg import Draw

COLUMNS = 3
LEGEND_ROW = 0.22  # inches
_SUFFIXES: dict[str, dict[str, None] | None] = {  # with no date in it a file follows from its numbers
    ".svg": {"Date": None},
    ".png": None,
    ".pdf": {"CreationDate": None},
}
_TITLE_WIDTH = 13.2  # characters per inch
_LINE = 0.19  # inches


@dataclass(frozen=True)
class Sketch:
    """draw: onto an empty figure; title: what it is, for those who do not see it; lead: what to see; key:
    what the marks mean; width, height: inches.
    """

    draw: Draw
    title: str
    lead: str
    key: str = ""
    height: float = 4.2
    width: float = 6.8


def check_picture(path: Path) -> None:
    """Raise RequestError for a file whose suffix is none of .svg, .png and .pdf."""
    if path.suffix.lower() not in _SUFFIXES:
        advice = f"let it end in {', '.join(_SUFFIXES)}"
        raise RequestError(f"no picture format is called {path.suffix!r}", where=str(path), advice=advice)


def save(figure: Figure, path: Path) -> None:
    """Write a figure made under `theme`, its format by the suffix. Equal figures give equal bytes."""
    figure.savefig(path, facecolor="white", dpi=160, metadata=_SUFFIXES[path.suffix.lower()])


def write_sketches(sketches: Sequence[Sketch], path: Path) -> None:
    """Write sketches below one another, each under its lead, to a file.

    Raises RequestError for a suffix that is none of .svg, .png and .pdf, and when there is nothing to draw.
    """
    check_picture(path)
    if not sketches:
        raise RequestError("there is nothing to draw in this answer", where=str(path))
    heads = [textwrap.fill(f"{each.lead} {each.key}", int(_TITLE_WIDTH * each.width)) for each in sketches]
    lines = [_LINE * (head.count("\n") + 2) for head in heads]
    heights = [each.height + above for each, above in zip(sketches, lines, strict=True)]
    with theme():
        figure = Figure(figsize=(max(each.width for each in sketches), sum(heights)), layout="constrained")
        parts = figure.subfigures(len(sketches), 1, height_ratios=heights, squeeze=False).flat
        for part, each, head in zip(parts, sketches, heads, strict=True):
            part.suptitle(head, fontsize=9.5, x=0.01, ha="left")
            each.draw(part)
        save(figure, path)


def grid(figure: FigureBase, count: int, lines: int = 1, *, shared: bool = True) -> Sequence[Axes]:
    """`count` axes in lines, which share both scales unless told otherwise."""
    columns = math.ceil(count / lines) if not shared else min(count, COLUMNS)
    places: list[Axes] = list(
        figure.subplots(lines, columns, sharex=shared, sharey=shared, squeeze=False).flat
    )
    for place in places[count:]:
        place.remove()
    return places[:count]
