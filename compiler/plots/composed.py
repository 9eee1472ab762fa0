"""Composites: measured rho of published tables against what rules make of their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from ...runtime.laws.composition import Evidence, Rule, settle
from .style import DASHES, INK, Style


@dataclass(frozen=True)
class ComposedPoint:
    """A cell of a table: rho of the composite as measured, and as a rule has it."""

    table: str
    measured: float
    predicted: float


@dataclass(frozen=True)
class ComposedData:
    """One rule in every table, with constants from the other tables; largest: its largest error."""

    rule: str
    points: tuple[ComposedPoint, ...]

    @property
    def largest(self) -> float:
        """The largest error in rho."""
        return max(abs(point.predicted - point.measured) for point in self.points)


def composed_data(rule: Rule, evidence: Sequence[Evidence]) -> ComposedData:
    """A rule held to each table, its constants learned from the others."""
    points = []
    for table in evidence:
        settled = settle(rule, [other for other in evidence if other is not table])
        predicted = settled.combine(table.parts, table.families)
        points += [
            ComposedPoint(table.name, float(measured), float(said))
            for measured, said in zip(table.measured, predicted, strict=True)
        ]
    return ComposedData(rule.name, tuple(points))


def draw_composed(axes: Sequence[Axes], rules: Sequence[ComposedData], look: Mapping[str, Style]) -> None:
    """One panel for each rule, around the line where it is right."""
    for place, data in zip(axes, rules, strict=True):
        place.plot([0, 1], [0, 1], color=INK, linestyle=DASHES, linewidth=1.0, alpha=0.75)
        for table in dict.fromkeys(point.table for point in data.points):
            own = [point for point in data.points if point.table == table]
            place.plot(
                [point.measured for point in own], [point.predicted for point in own], look[table].marker,
                color=look[table].colour, alpha=0.8, markersize=5.5,
            )  # fmt: skip
        place.set_title(f"{data.rule}: off by {data.largest:.3f} at most")
        place.set_xlim(0.0, 1.02)
        place.set_ylim(0.0, 1.02)
        place.set_aspect("equal")
        place.set_xlabel("ρ of the composite, measured")
        place.set_ylabel("ρ by the rule")
        place.label_outer()
