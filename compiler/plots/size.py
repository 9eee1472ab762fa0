"""Loss against model size, by representation, with the curves of the fitted law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ...runtime.units import TEXT, Units
from .data import RunRow, representations
from .fitted import FittedLaw
from .style import DASHES, HELD_OUT_MARKER, Style, count_axis
from .text import short_count

PANELS = 3
_CURVE_POINTS = 40
_SAME = 1.1  # ratio of budgets up to which runs share a panel

Array = NDArray[np.float64]
Points = tuple[tuple[float, float], ...]
"""(N in parameters, loss), by increasing N."""


@dataclass(frozen=True)
class SizePanel:
    """Runs that share a budget: the same D, or the same D/N.

    points: measured runs the fit has seen; held_out: runs it has not; curves: the law at this budget.
    """

    label: str
    points: Mapping[str, Points]
    held_out: Mapping[str, Points]
    curves: Mapping[str, Points]

    @property
    def runs(self) -> int:
        """How many measured runs the panel shows."""
        return sum(len(points) for part in (self.points, self.held_out) for points in part.values())


@dataclass(frozen=True)
class _Budget:
    """What runs of one budget share: its value for a run, that in words, and the D it means at an N."""

    value: Callable[[RunRow], float]
    label: Callable[[float], str]
    tokens: Callable[[float, float], float]


_BY_TOKENS = _Budget(lambda run: run.tokens, lambda d: f"D = {short_count(d)}", lambda d, n: d)
_BY_RATIO = _Budget(
    lambda run: run.tokens / run.params,
    lambda ratio: f"D/N = {short_count(ratio)}",
    lambda ratio, n: ratio * n,
)


def loss_by_size(runs: Sequence[RunRow], law: FittedLaw | None, units: Units = TEXT) -> tuple[SizePanel, ...]:
    """At most three panels, by budget: the commonest values of D, or of D/N where those cover more runs.

    Budgets within a tenth of one another count as equal. Without a law there are no curves.
    """
    if not runs:
        return ()
    budget, groups = max(
        ((budget, _commonest(runs, budget)) for budget in (_BY_TOKENS, _BY_RATIO)),
        key=lambda candidate: sum(len(group) for group in candidate[1]),
    )
    sizes = [run.params for run in runs]
    span = np.geomspace(min(sizes) / 1.15, max(sizes) * 1.15, _CURVE_POINTS)
    return tuple(_panel(budget, group, law, span, units) for group in groups)


def draw_loss_by_size(
    axes: Sequence[Axes], panels: Sequence[SizePanel], look: Mapping[str, Style], units: Units = TEXT
) -> None:
    """One panel on each of `axes`, which share both scales. The law is dashed for what it has not seen."""
    for place, panel in zip(axes, panels, strict=True):
        for name, curve in panel.curves.items():
            line = "-" if name in panel.points else DASHES
            place.plot(*zip(*curve, strict=True), color=look[name].colour, linestyle=line, linewidth=1.3)
        for name, points in panel.points.items():
            place.plot(*zip(*points, strict=True), look[name].marker, color=look[name].colour)
        for name, points in panel.held_out.items():
            place.plot(*zip(*points, strict=True), HELD_OUT_MARKER, color=look[name].colour, markersize=13)
        place.set_title(panel.label)
        place.set_xscale("log")
    for place in axes:
        count_axis(place.xaxis)
        place.set_xlabel("N (parameters)")
        place.set_ylabel(f"loss{units.loss_in_brackets}")
        place.label_outer()


def _panel(
    budget: _Budget, runs: Sequence[RunRow], law: FittedLaw | None, span: Array, units: Units
) -> SizePanel:
    names = representations((), runs)
    # budgets in a panel agree roughly; its curves are for the middle one
    middle = float(np.median([budget.value(run) for run in runs]))
    curves = {} if law is None else {name: _curve(law, name, budget, middle, span) for name in names}
    return SizePanel(
        label=f"{budget.label(middle)} {units.budget}",
        points=_by_name(names, [run for run in runs if not run.held_out]),
        held_out=_by_name(names, [run for run in runs if run.held_out]),
        curves={name: curve for name, curve in curves.items() if curve},
    )


def _curve(law: FittedLaw, name: str, budget: _Budget, value: float, span: Array) -> Points:
    pairs = ((float(n), law.loss(name, float(n), budget.tokens(value, float(n)))) for n in span)
    return tuple((n, loss) for n, loss in pairs if loss is not None)


def _by_name(names: Sequence[str], runs: Sequence[RunRow]) -> dict[str, Points]:
    found = {
        name: tuple(sorted((float(run.params), run.loss) for run in runs if run.representation == name))
        for name in names
    }
    return {name: points for name, points in found.items() if points}


def _commonest(runs: Sequence[RunRow], budget: _Budget) -> list[list[RunRow]]:
    """The PANELS largest groups of runs of equal budget, by budget; of equals, those of larger budget."""
    groups: list[list[RunRow]] = []
    for run in sorted(runs, key=budget.value):
        if groups and budget.value(run) <= _SAME * budget.value(groups[-1][0]):
            groups[-1].append(run)
        else:
            groups.append([run])
    chosen = sorted(range(len(groups)), key=lambda place: (-len(groups[place]), -place))[:PANELS]
    return [groups[place] for place in sorted(chosen)]
