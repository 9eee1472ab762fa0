"""Which representation for which layer under a budget: one choice each, the best total of a measure, proven.

>>> from rhoc.compiler.sensitivity import gaussian
>>> layers = [Layer("up.weight", (256, 128)), Layer("down.weight", (128, 256))]
>>> offered = [Candidate.of("int4"), Candidate.of("int8")]
>>> print(allocate(layers, offered, "6.5 bits", gaussian(layers, offered)).summary)
int4 1, int8 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from ..runtime.errors import RequestError
from .allocation_result import AllocationResult, Choice, Limit
from .budget import Budget
from .candidates import Candidate, Dropped, Layer, Offer, offered
from .knapsack import Option, Problem, Solution, nearest, solve
from .latency import Latency
from .sensitivity import Sensitivity

_NANOSECONDS = 10**6  # in a millisecond; whole costs add up exactly
_TIMES = "milliseconds"


def allocate(
    layers: Sequence[Layer],
    candidates: Offer,
    budget: Budget | str | int | Sequence[str | int] | Mapping[str, object],
    measure: Sensitivity,
    *,
    latency: Latency | None = None,
    ties: Sequence[Sequence[str]] = (),
    seconds: float | None = None,
) -> AllocationResult:
    """Choose one candidate for every layer: the best total of a measure within a budget.

    Args:
        budget: what `Budget.of` reads: "12 MB", "3.5 bits", "2 ms", several of them.
        measure: values by layer and candidate, as `sensitivity` gives them for these layers and candidates.
        latency: measured times, for a budget in milliseconds. Candidates without a time are dropped.
        ties: groups of paths that choose alike, from the candidates that all of them can have.
        seconds: when to stop with the best choice so far; by default not before it is proven best.

    Raises:
        RequestError: a budget that no choice meets (it names the smallest that one does), an unknown path in
            ties, or a layer or tie without candidates left.
        WorkError: the solver failed.
    """
    if not layers:
        raise RequestError("there are no layers to allocate", advice="give one weight at least")
    limits = Budget.of(budget)
    able, dropped = _able(layers, candidates, measure, limits, latency)
    table = _Table(
        layers, able, measure, _groups(layers, ties), latency if limits.milliseconds is not None else None
    )
    problem, names = table.problem(limits)
    solution = solve(problem, seconds)
    if solution is None:
        raise _infeasible(problem, names, limits, table)
    return table.result(solution, names, limits, (*measure.dropped, *dropped))


@dataclass(frozen=True)
class _Table:
    """Layers in groups that choose alike, and the candidates of each."""

    layers: Sequence[Layer]
    able: Mapping[str, tuple[Candidate, ...]]
    measure: Sensitivity
    groups: tuple[tuple[Layer, ...], ...]
    latency: Latency | None

    def common(self, group: tuple[Layer, ...]) -> list[str]:
        """Names of the candidates that all layers of a group can have."""
        names = [{candidate.name for candidate in self.able[layer.path]} for layer in group]
        common = [c.name for c in self.able[group[0].path] if all(c.name in each for each in names)]
        if not common:
            paths = ", ".join(layer.path for layer in group)
            advice = "offer them dense as well, or untie them"
            raise RequestError("these tied layers have no candidate in common", where=paths, advice=advice)
        return common

    def problem(self, budget: Budget) -> tuple[Problem, tuple[str, ...]]:
        """Groups and limits as numbers, and the names of the limits."""
        limits = budget.byte_limits(sum(layer.weights for layer in self.layers))
        if budget.milliseconds is not None:
            limits[_TIMES] = round(Fraction(budget.milliseconds) * _NANOSECONDS)
        names = tuple(limits)
        groups = tuple(
            tuple(self._option(group, name, names) for name in self.common(group)) for group in self.groups
        )
        return Problem(groups, tuple(limits.values())), names

    def _option(self, group: tuple[Layer, ...], name: str, limits: tuple[str, ...]) -> Option:
        chosen = [self.choice(layer, name) for layer in group]
        value = sum(choice.value for choice in chosen)
        nbytes = sum(choice.nbytes for choice in chosen)
        times = sum(round((choice.milliseconds or 0.0) * _NANOSECONDS) for choice in chosen)
        costs = tuple(times if limit == _TIMES else nbytes for limit in limits)
        return Option(-value if self.measure.maximise else value, costs)

    def choice(self, layer: Layer, name: str, tied: tuple[str, ...] = ()) -> Choice:
        """A layer with one of its candidates."""
        candidate = next(each for each in self.able[layer.path] if each.name == name)
        time = self.latency.of(name, layer.shape) if self.latency else None
        return Choice(
            layer=layer,
            candidate=candidate,
            value=self.measure.values[layer.path][name],
            nbytes=candidate.nbytes(layer),
            milliseconds=None if time is None else layer.count * time,
            tied=tied,
        )

    def result(
        self, solution: Solution, names: tuple[str, ...], budget: Budget, dropped: tuple[Dropped, ...]
    ) -> AllocationResult:
        """The choice, layer by layer in their order."""
        chosen: dict[str, Choice] = {}
        for group, position in zip(self.groups, solution.choices, strict=True):
            name = self.common(group)[position]
            for layer in group:
                tied = tuple(other.path for other in group if other is not layer)
                chosen[layer.path] = self.choice(layer, name, tied)
        sign = -1.0 if self.measure.maximise else 1.0
        return AllocationResult(
            measure=self.measure.measure,
            maximise=self.measure.maximise,
            source=self.measure.source,
            status=solution.status,
            choices=tuple(chosen[layer.path] for layer in self.layers),
            objective=sign * solution.objective,
            bound=sign * solution.bound,
            gap=solution.gap,
            nodes=solution.nodes,
            limits=tuple(
                Limit(name, getattr(budget, name), float(self.amount(name, cost)))
                for name, cost in zip(names, solution.costs, strict=True)
            ),
            dropped=dropped,
        )

    def amount(self, name: str, cost: int) -> Fraction:
        """A cost in the unit of its limit."""
        if name == _TIMES:
            return Fraction(cost, _NANOSECONDS)
        weights = sum(layer.weights for layer in self.layers)
        return Fraction(8 * cost, weights) if name == "bits_per_weight" else Fraction(cost)


def _able(
    layers: Sequence[Layer], candidates: Offer, measure: Sensitivity, budget: Budget, latency: Latency | None
) -> tuple[dict[str, tuple[Candidate, ...]], list[Dropped]]:
    """The candidates of each layer that have a value, and where time counts one of those too."""
    if budget.milliseconds is not None and latency is None:
        advice = "give latency=, a table of measured times (read_latency)"
        raise RequestError("a budget in milliseconds needs measured times", where="budget", advice=advice)
    wanted, dropped = offered(layers, candidates), []
    able = {}
    for layer in layers:
        refused = {each.candidate for each in measure.dropped if each.path == layer.path}
        own = tuple(c for c in wanted[layer.path] if c.name not in refused)
        for candidate in own:
            _check_valued(measure, layer, candidate)
        if budget.milliseconds is not None and latency is not None:
            untimed = [c.name for c in own if latency.of(c.name, layer.shape) is None]
            reason = f"no time was measured for the shape {layer.shape_text}"
            dropped += [Dropped(layer.path, name, reason) for name in untimed]
            own = tuple(c for c in own if c.name not in untimed)
        if not own:
            names = ", ".join(c.name for c in wanted[layer.path])
            message = f"no candidate has a time for the shape {layer.shape_text} ({names})"
            raise RequestError(message, where=layer.path, advice="measure one of them")
        able[layer.path] = own
    return able, dropped


def _check_valued(measure: Sensitivity, layer: Layer, candidate: Candidate) -> None:
    valued = [c for c in measure.candidates.get(layer.path, ()) if c.name == candidate.name]
    if valued != [candidate]:
        message = f"the measure has no value for {candidate.name}" + (" as it is offered" if valued else "")
        advice = "measure these layers with these candidates"
        raise RequestError(message, where=layer.path, advice=advice)


def _groups(layers: Sequence[Layer], ties: Sequence[Sequence[str]]) -> tuple[tuple[Layer, ...], ...]:
    """Layers that choose alike, in the order of their first; ties that share a layer are one."""
    by_path = {layer.path: layer for layer in layers}
    group_of = {path: {path} for path in by_path}
    for tie in ties:
        unknown = [path for path in tie if path not in by_path]
        if unknown:
            raise RequestError("a tie names no layer", where=unknown[0], advice="name paths of given layers")
        merged = set().union(*(group_of[path] for path in tie))
        for path in merged:
            group_of[path] = merged
    groups = {id(group): group for group in group_of.values()}
    return tuple(tuple(layer for layer in layers if layer.path in group) for group in groups.values())


def _infeasible(problem: Problem, names: tuple[str, ...], budget: Budget, table: _Table) -> RequestError:
    """What the smallest reachable budget is, and among which candidates."""
    over = [k for k, least in enumerate(problem.smallest) if least > problem.limits[k]]
    costs = problem.smallest if over else nearest(problem)
    shown = over or range(len(names))
    least = " and ".join(_words(names[k], table.amount(names[k], costs[k])) for k in shown)
    offered_names = dict.fromkeys(c.name for own in table.able.values() for c in own)
    what = "the smallest that these candidates reach is" if over else "the nearest that one comes is"
    return RequestError(
        f"no choice meets {budget}; {what} {least}",
        where="budget",
        advice=f"raise it, or offer smaller candidates than {', '.join(offered_names)}",
    )


def _words(name: str, amount: Fraction) -> str:
    """An amount that is reachable when it is asked for again: rounded up."""
    if name == "bytes":
        return f"{int(amount):,} bytes"
    digits = 10**6
    rounded = ceil(amount * digits) / digits
    return f"{rounded:.10g} " + ("ms" if name == _TIMES else "bits per weight")
