"""A crossover: the losses of two formats against the budget that grows, and their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from ..questions.crossover import Crossover
from ..questions.optimum import Case
from .band import SHADE, Array, Band, band_of, draw_band
from .data import Interval
from .style import DASHES, INK, Style, count_axis, flops_axis

UNITS = {
    "flops": "training compute (16-bit FLOPs)",
    "bytes": "memory of the stored weights (bytes)",
    "tokens": "training tokens",
    "served": "tokens served",
    "params": "N (parameters)",
}
_BUDGETS = 33


@dataclass(frozen=True)
class Crossing:
    """over: what grows; amounts: its values; losses: of both formats, in nats per token; gap: the first's
    minus the second's, with the interval of joint draws; at, interval: the crossover, None for never.
    """

    over: str
    amounts: tuple[float, ...]
    names: tuple[str, str]
    losses: tuple[Band, Band]
    gap: Band
    at: float | None
    interval: Interval | None


def crossing(found: Crossover, cases: Sequence[Case]) -> Crossing:
    """A crossover with the losses around it; `cases` are those of its two formats, in its order."""
    amounts = np.geomspace(*found.ends, _BUDGETS)
    field = "nbytes" if found.over == "bytes" else found.over
    budget = replace(found.budget, **{field: amounts[None]})
    first, second = (case.optimum(budget).loss for case in cases)
    with np.errstate(invalid="ignore"):
        gap: Array = first - second
    return Crossing(
        over=found.over,
        amounts=tuple(amounts.tolist()),
        names=found.names,
        losses=(band_of(first), band_of(second)),
        gap=band_of(gap),
        at=found.at,
        interval=found.interval,
    )


def draw_crossing(axes: Sequence[Axes], data: Crossing, look: Mapping[str, Style]) -> None:
    """Both losses on the first of two axes, their difference on the second, which share the budget."""
    for name, band in zip(data.names, data.losses, strict=True):
        draw_band(axes[0], data.amounts, band, look[name], marker=True)
    axes[1].axhline(0.0, color=INK, linestyle=DASHES, linewidth=1.0, alpha=0.75)
    draw_band(axes[1], data.amounts, data.gap, Style(INK, ""))
    for place in axes:
        if data.interval is not None:
            place.axvspan(*data.interval, color="#D55E00", alpha=SHADE, linewidth=0)
        if data.at is not None:
            place.axvline(data.at, color="#D55E00", linewidth=1.5)
        place.set_xscale("log")
        place.set_xlim(data.amounts[0], data.amounts[-1])
        (flops_axis if data.over == "flops" else count_axis)(place.xaxis)
        place.label_outer()
    axes[0].set_ylabel("loss (nats per token)")
    axes[1].set_ylabel("difference (nats)")
    axes[1].set_xlabel(UNITS[data.over])
