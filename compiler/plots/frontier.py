"""Compute-optimal training by format: the best N, and the loss it reaches, for every budget of FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from ...runtime.laws.bootstrap import Draws
from ...runtime.laws.result import Fit, Range
from ...runtime.units import TEXT, Units
from ..questions.optimum import Budget, Case
from .band import SHADE, Band, band_of, draw_band
from .data import Interval
from .style import DASHES, INK, Style, count_axis, flops_axis

MOST_LINES = 6
DRAWS = 200
"""Bootstrap draws behind a band; their quantiles are wanted to the width of a line."""

_BUDGETS = 24
_BEYOND = 10.0  # times outside the data, or around the budget that was asked for


@dataclass(frozen=True)
class FrontierLine:
    """One format: loss and N, each with its interval."""

    name: str
    loss: Band
    params: Band


@dataclass(frozen=True)
class Frontier:
    """flops: budgets, in 16-bit FLOPs; data: 6ND from the least N and D of the runs to the most, None when
    not published; at: the budget that was asked for, if any; left_out: formats that would crowd the figure.
    """

    flops: tuple[float, ...]
    lines: tuple[FrontierLine, ...]
    data: Interval | None
    at: float | None = None
    left_out: tuple[str, ...] = ()


def thinned(fit: Fit, draws: int = DRAWS) -> Fit:
    """The same fit with its first draws only, for what is drawn and not read off."""
    every = fit.draws
    return replace(fit, draws=Draws(every.names, every.values[:draws], every.seed, every.discarded))


def frontier(cases: Sequence[Case], budget: Budget | None = None, at: float | None = None) -> Frontier:
    """The best N and loss of cases of one voice, for budgets around the data and around `at`.

    budget: what is limited beside FLOPs. Of many formats dense is kept, and others from the highest to the
    lowest rho.
    """
    asked, known = budget or Budget(), cases[0].voice.range
    data = None if known is None else flops_of(known)
    flops = np.geomspace(*_ends(data, at), _BUDGETS)
    kept = _spread(cases)
    lines = []
    for case in kept:
        found = case.optimum(replace(asked, flops=flops[None]))
        able = np.isfinite(found.loss)
        params = np.where(able, found.params, np.nan)
        lines.append(FrontierLine(case.format.name, band_of(found.loss), band_of(params)))
    left_out = tuple(case.format.name for case in cases if case not in kept)
    return Frontier(tuple(flops.tolist()), tuple(lines), data, at, left_out)


def draw_frontier(
    axes: Sequence[Axes], data: Frontier, look: Mapping[str, Style], units: Units = TEXT
) -> None:
    """Loss on the first of two axes, N on the second. The range of the data is shaded."""
    for place, part in zip(axes, ("loss", "params"), strict=True):
        if data.data is not None:
            place.axvspan(*data.data, color=INK, alpha=0.4 * SHADE, linewidth=0)
        if data.at is not None:
            place.axvline(data.at, color=INK, linestyle=DASHES, linewidth=1.0, alpha=0.75)
        for line in data.lines:
            draw_band(place, data.flops, getattr(line, part), look[line.name], marker=True)
        place.set_xscale("log")
        place.set_xlim(data.flops[0], data.flops[-1])
        flops_axis(place.xaxis)
        place.set_xlabel("training compute (16-bit FLOPs)")
    axes[0].set_ylabel(f"least loss{units.loss_in_brackets}")
    axes[1].set_yscale("log")
    count_axis(axes[1].yaxis)
    axes[1].set_ylabel("best N (parameters)")


def flops_of(known: Range) -> Interval:
    """6ND of the least N and D of runs, and of the most."""
    return 6 * known.params[0] * known.tokens[0], 6 * known.params[1] * known.tokens[1]


def _ends(data: Interval | None, at: float | None) -> Interval:
    """Where budgets begin and end. Raises ValueError when nothing says where."""
    marks = [*(data or ()), *([] if at is None else [at])]
    if not marks:
        raise ValueError("neither the range of the data nor a budget is known")
    around = [] if at is None else [at / _BEYOND, at * _BEYOND]
    return min([*marks, *around]), max([*(mark * _BEYOND for mark in data or ()), *around])


def _spread(cases: Sequence[Case]) -> list[Case]:
    plain = [case for case in cases if case.format.name == "dense"]
    others = [case for case in cases if case not in plain]
    ordered = sorted(others, key=lambda case: (-case.multiplier.value, case.format.name))
    room = min(MOST_LINES - len(plain), len(ordered))
    places = np.linspace(0, len(ordered) - 1, room).round().astype(int)
    return plain + [ordered[place] for place in places]
