"""Whether the runs determine a parameter, measured by profile likelihood; and if not, what is to blame.

A profile fixes one parameter at value after value and fits all others again. Where the objective rises by
less than the noise allows, the runs cannot tell the values apart. The reason is then looked for in the spread
of the data, and named only where it is found there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .newton import minimise
from .objective import Objective
from .outcome import Unidentified
from .ridge import along, cure, ridge
from .runs import Array, Runs

_ALLOWED = 3.841458820694124  # 95 % point of chi-squared with one degree of freedom
_FACTOR = 3.0  # a parameter known to no better than this factor counts as not identified
_STEPS = 24
_NEAR = 0.1  # relative distance from the median D/N that counts as the same D/N
_NARROW = 10.0  # a largest over smallest N or D below this hardly separates the terms


@dataclass(frozen=True)
class Profile:
    """The 95 % profile likelihood interval of a parameter."""

    parameter: str
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether the interval is away from zero and spans less than a factor of 3."""
        return self.low > 0 and self.high <= _FACTOR * self.low


def noise_variance(objective: Objective, point: Array) -> float:
    """Variance that makes a rise of the objective a likelihood ratio: mean psi^2 / mean psi' (Huber 1964).

    With n/(n - p) for the parameters fitted. For residuals all within delta this is the residual variance.
    """
    residual = objective.residual(point[None])[0]
    count = len(residual)
    psi = np.clip(residual, -objective.delta, objective.delta)
    inside = max(float((np.abs(residual) <= objective.delta).mean()), 1.0 / count)
    return float(np.square(psi).mean() / inside * count / max(count - objective.size, 1))


def profile(objective: Objective, point: Array, position: int, allowed: float) -> Profile:
    """Walk a parameter away from the optimum, both ways, until the objective has risen by `allowed`."""
    low, high = objective.bounds
    top = min(float(high[position]), 0.98 * float(objective.loss.min()))
    best = objective.value(point[None], np.ones((1, len(objective.loss))))[0]
    centre = float(point[position])
    down = _walk(objective, point, position, _values(centre, float(low[position])), best + allowed)
    up = _walk(objective, point, position, _values(centre, max(top, centre)), best + allowed)
    return Profile(objective.names[position], down, up)


def _values(start: float, end: float) -> Array:
    """Steps from start to end: even for a range that reaches zero, geometric otherwise."""
    if start == end:
        return np.empty(0)
    if min(start, end) <= 0:
        return np.linspace(start, end, _STEPS + 1)[1:]
    return np.geomspace(start, end, _STEPS + 1)[1:]


def _walk(objective: Objective, point: Array, position: int, values: Array, limit: float) -> float:
    """Where the profile crosses `limit`, by linear interpolation; the last value when it never does."""
    weights = np.ones((1, len(objective.loss)))
    fixed = np.zeros((1, objective.size), dtype=bool)
    fixed[0, position] = True
    at, before = point[None].copy(), float(point[position])
    reached = float(objective.value(at, weights)[0])
    for value in values:
        at[0, position] = value
        solution = minimise(objective, at, weights, fixed=fixed, tolerance=1e-7, iterations=100)
        at, found = solution.points, float(solution.values[0])
        if found > limit:
            return before + (float(value) - before) * (limit - reached) / max(found - reached, 1e-300)
        before, reached = float(value), found
    return before


def unidentified(runs: Runs, objective: Objective, point: Array) -> tuple[Unidentified, ...]:
    """Those of E, the exponents and shape parameters that the runs do not determine, and why."""
    allowed = 0.5 * _ALLOWED * noise_variance(objective, point)
    count = len(objective.terms.coefficients)
    floor = [objective.names.index("E")] if "E" in objective.names else []
    positions = [*floor, *range(count, objective.size)]
    found: list[Unidentified] = []
    for position in positions:
        measured = profile(objective, point, position, allowed)
        if measured.resolved:
            continue
        reasons, remedies = _reasons(runs, objective, point, position)
        narrow = measured.high - measured.low < 0.5 * float(runs.loss.min())
        if measured.parameter == "E" and not reasons and narrow:
            continue  # E is known to be small: a value at its bound, not an unknown one
        between = along(objective, point, position, measured.low, measured.high)
        moves = ridge(objective, position, between)
        extra = "" if found else cure(runs, objective, between)  # two runs for all of them
        found.append(
            Unidentified(measured.parameter, measured.low, measured.high, reasons, remedies, moves, extra)
        )
    return tuple(found)


def _reasons(
    runs: Runs, objective: Objective, point: Array, position: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Weaknesses of the data that bear on a parameter, each checked, and the runs that would mend them."""
    name = objective.names[position]
    reasons: list[str] = []
    remedies: list[str] = []
    if name in ("E", "alpha", "beta"):
        ratio = _ratio_reason(runs, objective, point, position)
        if ratio:
            reasons.append(ratio)
            remedies.append("runs at other D/N")
    spans = {"E": ("N", "D"), "alpha": ("N",), "beta": ("D",)}.get(name, ())
    for symbol, noun, column in (("N", "sizes", runs.params), ("D", "values of D", runs.tokens)):
        span = float(column.max() / column.min())
        if symbol in spans and span < _NARROW:
            size = "do not vary" if span == 1 else f"span only a factor of {span:.3g}"
            reasons.append(f"{noun} {size}")
            remedies.append(f"runs at more {noun}")
    if name not in ("E", "alpha", "beta"):
        cells = (*runs.columns.get("gmse_weight", ()), *runs.columns.get("gmse_input", ()))
        levels = len({cell for cell in cells if cell and float(cell) > 0})
        if levels <= 4:
            reasons.append(f"there are only {levels} levels of GMSE")
            remedies.append("runs of representations with other GMSE")
    return tuple(reasons), tuple(remedies)


def _ratio_reason(runs: Runs, objective: Objective, point: Array, position: int) -> str:
    """Whether most runs share one D/N, and what those runs alone would know of the parameter."""
    ratio = runs.tokens_per_param
    middle = float(np.median(ratio))
    near = np.abs(ratio / middle - 1) <= _NEAR
    if near.mean() <= 0.5:
        return ""
    text = f"D/N hardly varies: {near.sum()} of {len(runs)} runs have D/N near {middle:.3g}"
    if near.all():
        return text
    jacobian = objective.jacobian(point[None])[0]
    alone, together = (_standard_error(rows, position) for rows in (jacobian[near], jacobian))
    worse = alone / together / np.sqrt(len(runs) / near.sum())
    if worse < 1.5:  # D/N is concentrated, but the other runs are not what determines this parameter
        return ""
    name = objective.names[position]
    if worse > 100:
        return f"{text} (which by themselves say nothing of {name})"
    return f"{text} (which fix {name} {worse:.1f} times less sharply than as many average runs)"


def _standard_error(jacobian: Array, position: int) -> float:
    """Standard error of a parameter in units of the noise, from the information in these runs."""
    used = np.flatnonzero(np.abs(jacobian).max(axis=0) > 0)
    column = jacobian[:, position]
    others = jacobian[:, [int(i) for i in used if i != position]]
    left = column - others @ np.linalg.lstsq(others, column, rcond=1e-12)[0]
    return 1.0 / max(float(np.linalg.norm(left)), 1e-300)
