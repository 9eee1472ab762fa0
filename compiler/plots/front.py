"""A search: every candidate by its bits and rho, the Pareto front, and the winner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from ..questions.search import Found, Search
from .data import Interval
from .style import DASHES, INK
from .text import label

GREY = "#8a8f98"
"""What lost. It is seen on paper and on a dark page alike."""

FRONT_COLOUR, WINNER_COLOUR = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class FrontPoint:
    """A representation on the front; interval: of its rho."""

    name: str
    bits: float
    rho: float
    interval: Interval | None


@dataclass(frozen=True)
class FrontData:
    """measured: (bits, rho) of candidates whose error was measured; ruled_out: (bits, most that rho could be)
    of those that could not have won; front: the fewest bits first, the winner last; most_bits: the budget.
    """

    measured: tuple[tuple[float, float], ...]
    ruled_out: tuple[tuple[float, float], ...]
    front: tuple[FrontPoint, ...]
    most_bits: float

    @property
    def winner(self) -> FrontPoint:
        """The best within the budget."""
        return self.front[-1]


def front_data(found: Search) -> FrontData:
    """The weights of a search; candidates above the budget, which it looks at for advice, are left out."""
    tried = [each for each in found.tried if each.bits <= found.bits + 1e-9]
    return FrontData(
        measured=tuple((each.bits, each.rho) for each in tried if each.measured),
        ruled_out=tuple((each.bits, each.rho) for each in tried if not each.measured),
        front=tuple(_point(each) for each in found.weights),
        most_bits=found.bits,
    )


def draw_front(axes: Axes, data: FrontData) -> None:
    """Candidates in grey, the front as steps, the winner as a star at the budget's edge."""
    if data.ruled_out:
        axes.plot(*zip(*data.ruled_out, strict=True), "v", color=GREY, alpha=0.35, markersize=4, mew=0)
    if data.measured:
        axes.plot(*zip(*data.measured, strict=True), "o", color=GREY, alpha=0.6, markersize=4, mew=0)
    bits, rho = [p.bits for p in data.front], [p.rho for p in data.front]
    axes.step([*bits, data.most_bits], [*rho, rho[-1]], where="post", color=FRONT_COLOUR)
    axes.plot(bits, rho, "s", color=FRONT_COLOUR, markersize=5)
    _whiskers(axes, data.front[:-1], FRONT_COLOUR)
    _whiskers(axes, data.front[-1:], WINNER_COLOUR)
    axes.plot([data.winner.bits], [data.winner.rho], "*", color=WINNER_COLOUR, markersize=15)
    axes.axvline(data.most_bits, color=INK, linestyle=DASHES, linewidth=1.0, alpha=0.75)
    axes.set_title(label(data.winner.name, 90), loc="right", color=WINNER_COLOUR, fontsize=9)
    axes.set_ylim(0.0, None)
    axes.set_xlabel("stored bits per weight")
    axes.set_ylabel("ρ: dense parameters per parameter")


def _whiskers(axes: Axes, points: Sequence[FrontPoint], colour: str) -> None:
    for point in points:
        if point.interval is not None:
            axes.plot([point.bits] * 2, point.interval, "_-", color=colour, markersize=6, linewidth=1.0)


def _point(found: Found) -> FrontPoint:
    return FrontPoint(
        str(found.representation), found.bits, found.multiplier.value, found.multiplier.interval
    )
