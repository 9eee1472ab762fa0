"""A ranking: what formats are worth, with intervals, and which of them these do not tell from the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from .band import SHADE
from .data import Interval
from .style import INK
from .text import label

MOST_ROWS = 30
_COLOURS = {True: "#0072B2", False: INK}


@dataclass(frozen=True)
class RankRow:
    """A format with its worth; level: whether it may be the first."""

    name: str
    worth: float
    interval: Interval | None
    level: bool


@dataclass(frozen=True)
class RankData:
    """Rows, the first the best; unit: of worth, in words; hidden: how many more rows the ranking has."""

    rows: tuple[RankRow, ...]
    unit: str
    hidden: int

    @property
    def tied(self) -> bool:
        """Whether any other may be the first."""
        return sum(row.level for row in self.rows) > 1


def rank_data(ranking: Mapping[str, Any]) -> RankData:
    """The rows of a ranking's document, as many as a figure holds."""
    level = {*ranking["level_with_best"], ranking["formats"][0]["format"]}
    rows = tuple(
        RankRow(
            name=row["format"],
            worth=row["worth"],
            interval=None if row["worth_interval"] is None else (*row["worth_interval"],),
            level=row["format"] in level,
        )
        for row in ranking["formats"][:MOST_ROWS]
    )
    return RankData(rows, ranking["unit"], len(ranking["formats"]) - len(rows))


def draw_rank(axes: Axes, data: RankData) -> None:
    """A dot and a whisker per format, the best on top; rows that may be the first are shaded."""
    for place, row in enumerate(data.rows):
        if row.level and data.tied:
            axes.axhspan(place - 0.5, place + 0.5, color=_COLOURS[True], alpha=0.7 * SHADE, linewidth=0)
        if row.interval is not None:
            axes.plot(row.interval, [place, place], "|-", color=_COLOURS[row.level], markersize=7)
        axes.plot([row.worth], [place], "o", color=_COLOURS[row.level], markersize=5)
    axes.set_yticks(range(len(data.rows)), [label(row.name, 34) for row in data.rows])
    axes.set_ylim(len(data.rows) - 0.4, -0.6)
    axes.set_xlabel(data.unit)
