"""Figures as files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .rate import draw_rate, rate_points
from .sketch import check_picture, save
from .style import styles, theme

__all__ = ["check_picture", "rate_picture"]


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
        save(figure, path)
    return [point.name for point in data.points if point.best]
