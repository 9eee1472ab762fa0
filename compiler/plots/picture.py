"""Figures as files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...runtime.errors import RequestError
from .rate import draw_rate, rate_points
from .style import styles, theme

_SUFFIXES: dict[str, dict[str, None] | None] = {  # with no date in it a file follows from its numbers
    ".svg": {"Date": None},
    ".png": None,
    ".pdf": {"CreationDate": None},
}


def check_picture(path: Path) -> None:
    """Raise RequestError for a file whose suffix is none of .svg, .png and .pdf."""
    if path.suffix.lower() not in _SUFFIXES:
        advice = f"let it end in {', '.join(_SUFFIXES)}"
        raise RequestError(f"no picture format is called {path.suffix!r}", where=str(path), advice=advice)


def rate_picture(rows: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """Write the picture of formats under Shannon's bound; the names that nothing beats, by stored bits.

    `rows` are those of `rhoc specs ls`. The format follows from the file's suffix.

    Raises:
        RequestError: a suffix that is none of .svg, .png and .pdf.
    """
    check_picture(path)
    data = rate_points(rows)
    look = styles(sorted({point.kind for point in data.points}))
    with theme():
        figure = Figure(figsize=(9.0, 5.6), layout="constrained")
        draw_rate(figure.add_subplot(), data, look)
        figure.savefig(path, facecolor="white", dpi=160, metadata=_SUFFIXES[path.suffix.lower()])
    return [point.name for point in data.points if point.best]
