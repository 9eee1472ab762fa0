"""The multiple-choice knapsack: one option of every group, least total value, sums of costs within limits.

Solved by branch and bound (HiGHS, through `scipy.optimize.milp`) with a relative gap of 0. Costs are whole
numbers, and what the solver returns is added up again in whole numbers: its own tolerances decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..runtime.errors import WorkError
from .quiet import without_line

_SPAN = 1e5  # the largest difference of values as the solver sees it; it stops within 1e-6 of the bound
_ROW = 1e6  # the largest cost as the solver sees it
_CHATTER = (
    "HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();"  # HiGHS 1.12 prints this
)
_OPTIMAL, _STOPPED, _INFEASIBLE = 0, 1, 2


@dataclass(frozen=True)
class Option:
    """What choosing it adds to the value, and to each of the costs."""

    value: float
    costs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Groups of options of which one each is chosen, and the limit of each cost. The value is minimised."""

    groups: tuple[tuple[Option, ...], ...]
    limits: tuple[int, ...] = ()

    @property
    def smallest(self) -> tuple[int, ...]:
        """The least that each cost can be, each on its own."""
        return tuple(
            sum(min(option.costs[k] for option in group) for group in self.groups)
            for k in range(len(self.limits))
        )

    def value(self, choices: Sequence[int]) -> float:
        """The total value of the options at these positions."""
        return math.fsum(group[i].value for group, i in zip(self.groups, choices, strict=True))

    def costs(self, choices: Sequence[int]) -> tuple[int, ...]:
        """The total costs of the options at these positions."""
        return tuple(
            sum(group[i].costs[k] for group, i in zip(self.groups, choices, strict=True))
            for k in range(len(self.limits))
        )


@dataclass(frozen=True)
class Solution:
    """The position of the chosen option of each group.

    No choice is worth less than `bound`; `gap` is what is left between it and `objective`, relative to the
    objective. An optimal solution is proven to within 2e-11 of the largest difference inside a group.
    """

    status: Literal["optimal", "stopped"]
    choices: tuple[int, ...]
    objective: float
    bound: float
    gap: float
    costs: tuple[int, ...]
    nodes: int


@dataclass(frozen=True)
class _Kind:
    """Groups with the same options, which are interchangeable: only how many take which matters."""

    options: tuple[Option, ...]
    members: list[int]
    kept: tuple[int, ...]  # positions of options that no other is at least as good as in everything


def solve(problem: Problem, seconds: float | None = None) -> Solution | None:
    """The best choice, or None when none is within the limits.

    Equal problems have equal solutions. After `seconds`, if given, the best choice so far is returned, with
    what is left of the gap.

    Raises:
        WorkError: the solver gave up, or returned a choice beyond a limit.
    """
    if any(least > limit for least, limit in zip(problem.smallest, problem.limits, strict=True)):
        return None
    kinds = _kinds(problem)
    lowest = [min(kind.options[i].value for i in kind.kept) for kind in kinds]
    values = [kind.options[i].value - low for kind, low in zip(kinds, lowest, strict=True) for i in kind.kept]
    scale = _scale(max(values, default=0.0), _SPAN)
    found = _milp(np.array(values) * scale, kinds, _rows(problem, kinds), seconds)
    if found.status == _INFEASIBLE:
        return None
    choices = _choices(problem, kinds, found)
    objective = problem.value(choices)
    distance = max(0.0, float(found.fun) - float(found.mip_dual_bound)) / scale
    return Solution(
        status="optimal" if found.status == _OPTIMAL else "stopped",
        choices=choices,
        objective=objective,
        bound=objective - distance,
        gap=distance / abs(objective) if objective and distance else 0.0,
        costs=_checked(problem, choices),
        nodes=int(found.mip_node_count or 0),
    )


def nearest(problem: Problem) -> tuple[int, ...]:
    """Costs of the choice that overruns the limits by the least factor, where none is within them all."""
    kinds = _kinds(problem)
    rows = []
    for k, limit in enumerate(problem.limits):
        costs = [kind.options[i].costs[k] / max(limit, 1) for kind in kinds for i in kind.kept]
        rows.append((np.array([*costs, -1.0]), 0.0))
    count = sum(len(kind.kept) for kind in kinds)
    found = _milp(np.array([0.0] * count + [1.0]), kinds, rows, None)
    return problem.costs(_choices(problem, kinds, found))


def _kinds(problem: Problem) -> list[_Kind]:
    found: dict[tuple[Option, ...], _Kind] = {}
    for position, options in enumerate(problem.groups):
        if options not in found:
            found[options] = _Kind(options, [], _undominated(options))
        found[options].members.append(position)
    return list(found.values())


def _undominated(options: tuple[Option, ...]) -> tuple[int, ...]:
    """Positions of the options worth a thought: of equal ones the first."""

    def beats(i: int, j: int) -> bool:
        a, b = (options[i].value, *options[i].costs), (options[j].value, *options[j].costs)
        return all(x <= y for x, y in zip(a, b, strict=True)) and (a != b or i < j)

    places = range(len(options))
    return tuple(j for j in places if not any(beats(i, j) for i in places if i != j))


def _rows(problem: Problem, kinds: list[_Kind]) -> list[tuple[Any, float]]:
    """Costs above the cheapest option of each group, in the largest unit that all are multiples of.

    As costs are then whole, half a unit above the limit excludes the same choices as the limit does, and
    leaves room for the solver's rounding.
    """
    rows = []
    for k, (limit, smallest) in enumerate(zip(problem.limits, problem.smallest, strict=True)):
        least = {id(kind): min(option.costs[k] for option in kind.options) for kind in kinds}
        costs = [kind.options[i].costs[k] - least[id(kind)] for kind in kinds for i in kind.kept]
        unit = math.gcd(*costs)
        if unit == 0:
            continue
        scale = min(1.0, _scale(max(costs) // unit, _ROW))
        row = np.array([cost // unit for cost in costs], dtype=np.float64) * scale
        rows.append((row, ((limit - smallest) // unit + 0.5) * scale))
    return rows


def _scale(largest: float, wanted: float) -> float:
    """The power of two that brings a number to `wanted` or just below."""
    return math.ldexp(1.0, min(1000, math.floor(math.log2(wanted / largest)))) if largest > 0 else 1.0


def _milp(values: Any, kinds: list[_Kind], rows: list[tuple[Any, float]], seconds: float | None) -> Any:
    """How many members of each kind take each option; variables past these are continuous and positive."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # half a second, which few commands should pay
    from scipy.sparse import csr_array

    owner = [position for position, kind in enumerate(kinds) for _ in kind.kept]
    counts = [len(kind.members) for kind in kinds]
    one_each = csr_array((np.ones(len(owner)), (owner, range(len(owner)))), shape=(len(kinds), len(values)))
    most = [*(float(counts[position]) for position in owner), *[np.inf] * (len(values) - len(owner))]
    constraints = [LinearConstraint(one_each, counts, counts)]
    constraints += [LinearConstraint(row.reshape(1, -1), -np.inf, limit) for row, limit in rows]
    whole = np.arange(len(values)) < len(owner)
    options = {"mip_rel_gap": 0.0} | ({} if seconds is None else {"time_limit": seconds})
    with without_line(_CHATTER):
        return milp(
            values, integrality=whole, bounds=Bounds(0, most), constraints=constraints, options=options
        )


def _choices(problem: Problem, kinds: list[_Kind], found: Any) -> tuple[int, ...]:
    """Positions by group; members of one kind take the options in order."""
    if found.x is None:
        advice = "give it more seconds" if found.status == _STOPPED else "take fewer candidates or budgets"
        raise WorkError(f"the solver found no choice ({found.message})", advice=advice)
    choices = [0] * len(problem.groups)
    start = 0
    for kind in kinds:
        counts = [round(float(x)) for x in found.x[start : start + len(kind.kept)]]
        start += len(kind.kept)
        taken = [i for i, count in zip(kind.kept, counts, strict=True) for _ in range(count)]
        for member, i in zip(kind.members, taken, strict=True):
            choices[member] = i
    return tuple(choices)


def _checked(problem: Problem, choices: tuple[int, ...]) -> tuple[int, ...]:
    """The costs of a choice. Raises WorkError beyond a limit, where the solver's tolerance was at work."""
    costs = problem.costs(choices)
    for cost, limit in zip(costs, problem.limits, strict=True):
        if cost > limit:
            raise WorkError(
                f"the solver returned a choice that costs {cost}, over the limit of {limit}",
                advice=f"ask for a limit of {2 * limit - cost}",
            )
    return costs
