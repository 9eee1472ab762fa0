"""`rhoc crossover`: where one format overtakes another as a budget grows, or never near the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RequestError
from ...runtime.laws.base import Features
from ...runtime.laws.bootstrap import interval
from ...runtime.laws.predict import extrapolation
from ...runtime.laws.result import Fit, Range
from ...runtime.laws.runs import Array
from ..columns import Columns
from .cost_model import CostModel
from .optimum import Budget, Case, Optimum
from .plan import budget_document, cases_of, columns_document
from .voice import Voice

Over = Literal["flops", "bytes", "tokens", "served", "params"]

Flags = NDArray[np.bool_]
Integers = NDArray[np.intp]

_CELLS = 33  # budgets compared between the ends, evenly in the logarithm
_HALVINGS = 12  # each within its cell of half a factor of two or so: 1e-4 in the logarithm
_BEYOND = 10.0  # times outside the data is as far as a crossover is looked for
_DENSE_BYTES = 2.0


@dataclass(frozen=True)
class Crossover:
    """Where two formats are worth the same.

    at: the first budget from `low` to `high` where the leader changes, None for never; interval: that of the
    draws that cross; share: how many of the draws do; more: how often the lead changes again; near_data:
    whether the ends are those of the data, ten times wider on either side.
    """

    voice: Voice
    names: tuple[str, str]
    over: Over
    ends: tuple[float, float]
    near_data: bool
    budget: Budget
    cost: CostModel
    at: float | None
    interval: tuple[float, float] | None
    share: float | None
    more: int
    leaders: tuple[str, str]
    rows: tuple[dict[str, Any], ...]
    columns: dict[str, Features]

    @property
    def message(self) -> str:
        """The answer in a sentence."""
        first, last = self.leaders
        low, high = (f"{end:.3g}" for end in self.ends)
        if first == last == "":
            return f"they are worth the same from {low} to {high} {self.over}"
        if self.at is None:
            where = f"from {low} to {high} {self.over}"
            within = f", {_BEYOND:g} times beyond the data on either side" if self.near_data else ""
            return f"{first} leads {where}{within}: never overtaken there"
        again = f"; the lead changes {self.more} more times" if self.more else ""
        loser = self.names[1] if first == self.names[0] else self.names[0]
        return f"{first} leads below {self.at:.4g} {self.over}, {loser} above{again}"

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "source": self.voice.source,
            "interval_note": self.voice.note,
            "formats": list(self.names),
            "over": self.over,
            "searched": list(self.ends),
            "budget": budget_document(self.budget),
            "cost": self.cost.to_document(),
            **columns_document(self.voice, self.columns),
            "crossover": self.at,
            "crossover_interval": None if self.interval is None else list(self.interval),
            "share_of_draws_that_cross": self.share,
            "leader_at_low_end": self.leaders[0],
            "leader_at_high_end": self.leaders[1],
            "message": self.message,
            "at_crossover": list(self.rows),
        }


def crossover(
    first: str,
    second: str,
    budget: Budget,
    cost: CostModel,
    *,
    over: Over = "flops",
    ends: tuple[float | None, float | None] = (None, None),
    fit: Fit | None = None,
    source: str | None = None,
    columns: Columns | None = None,
) -> Crossover:
    """Where the second format overtakes the first, or the first the second, as `over` grows.

    budget: what else is given; for each budget every format takes its own best N and D, in every draw.
    ends: where to look; by default ten times beyond the data of the fit on either side. columns: what the law
    reads beside N, D and rho.
    Raises RequestError when one of the two is unknown, or when the ends are.
    """
    cases, unknown = cases_of((first, second), cost, fit, source, columns)
    if unknown:
        raise RequestError(f"nothing is known of {unknown[0]['format']!r}: {unknown[0]['reason']}")
    left, right = cases
    low, high = _ends(left, right, over, ends)
    field = "nbytes" if over == "bytes" else over
    replace(budget, **{field: high}).check()

    def solved(case: Case, amount: Array) -> Optimum:
        return case.optimum(replace(budget, **{field: amount}))

    def behind(log_amount: Array) -> Array:
        amount = np.exp(log_amount)
        losses = [solved(case, amount).loss for case in (left, right)]
        both = np.isfinite(losses[0]) | np.isfinite(losses[1])
        with np.errstate(invalid="ignore"):
            return np.where(both, losses[0] - losses[1], 0.0)

    grid = np.linspace(np.log(low), np.log(high), _CELLS)
    signs = _signs(np.concatenate([behind(np.full((left.voice.rows, 1), x)) for x in grid], axis=1))
    crossing, cell = _first_change(signs)
    place = np.exp(_halved(behind, grid, signs, cell)[:, 0])
    names = (left.format.name, right.format.name)
    at = float(place[0]) if crossing[0] else None
    drawn, able = place[1:], crossing[1:]
    return Crossover(
        voice=left.voice,
        names=names,
        over=over,
        ends=(low, high),
        near_data=ends == (None, None),
        budget=budget,
        cost=cost,
        at=at,
        interval=interval(drawn[able]) if at is not None and able.sum() > 1 else None,
        share=float(able.mean()) if len(able) else None,
        more=max(_changes(signs[0]) - 1, 0),
        leaders=(_leader(signs[0], names, 1), _leader(signs[0], names, -1)),
        rows=() if at is None else tuple(_row(case, solved(case, np.array([[at]]))) for case in cases),
        columns={case.format.name: case.features for case in cases},
    )


def _ends(
    left: Case, right: Case, over: Over, ends: tuple[float | None, float | None]
) -> tuple[float, float]:
    """Where to look for a crossover."""
    known = left.voice.range
    low, high = (None, None) if known is None else _around(known, over, left, right)
    low, high = ends[0] or low, ends[1] or high
    if low is None or high is None:
        advice = "name both ends with --from and --to"
        raise RequestError("the range of the data was not published", where=left.voice.source, advice=advice)
    if not 0 < low < high < np.inf:
        raise RequestError(
            f"the ends are {low:g} and {high:g}", advice="the first is the smaller, both positive"
        )
    return float(low), float(high)


def _around(known: Range, over: Over, left: Case, right: Case) -> tuple[float, float]:
    (least_params, most_params), (least_tokens, most_tokens) = known.params, known.tokens
    sizes = [_DENSE_BYTES if case.nbytes is None else case.nbytes for case in (left, right)]
    low, high = {
        "flops": (6 * least_params * least_tokens, 6 * most_params * most_tokens),
        "bytes": (least_params * min(sizes), most_params * max(sizes)),
        "params": (least_params, most_params),
    }.get(over, (least_tokens, most_tokens))
    return low / _BEYOND, high * _BEYOND


def _signs(behind: Array) -> Array:
    """Which of the two leads, [rows, cells]: 1 the second, -1 the first, 0 neither, but for rounding."""
    return np.where(np.abs(behind) < 1e-12, 0.0, np.sign(behind))


def _first_change(signs: Array) -> tuple[Flags, Integers]:
    """Whether the leader changes in each row, and the first cell in which it does."""
    filled = _filled(signs)
    changes = (filled[:, 1:] * filled[:, :-1]) < 0
    return np.asarray(changes.any(axis=1)), np.asarray(changes.argmax(axis=1))


def _filled(signs: Array) -> Array:
    """Signs with every 0 taken from the cell before it, where there is one."""
    filled = signs.copy()
    for cell in range(1, filled.shape[1]):
        filled[:, cell] = np.where(filled[:, cell] == 0, filled[:, cell - 1], filled[:, cell])
    return filled


def _halved(function: Callable[[Array], Array], grid: Array, signs: Array, cell: Integers) -> Array:
    """The logarithm of the budget inside the cell of each row where the sign changes, [rows, 1]."""
    low, high = grid[cell][:, None], grid[cell + 1][:, None]
    before = np.take_along_axis(_filled(signs), cell[:, None], axis=1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        same = np.sign(function(middle)) == before
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.asarray((low + high) / 2)


def _changes(signs: Array) -> int:
    kept = signs[signs != 0]
    return int((kept[1:] != kept[:-1]).sum())


def _leader(signs: Array, names: tuple[str, str], order: int) -> str:
    kept = signs[signs != 0][::order]
    return "" if not len(kept) else names[0] if kept[0] < 0 else names[1]


def _row(case: Case, optimum: Optimum) -> dict[str, Any]:
    params, tokens = float(optimum.params[0, 0]), float(optimum.tokens[0, 0])
    memory, known = case.nbytes, case.voice.range
    return {
        "format": case.format.name,
        "params": params,
        "tokens": tokens,
        "tokens_per_param": tokens / params,
        "bytes": None if memory is None else params * memory,
        "loss": float(optimum.loss[0, 0]),
        "extrapolation": known and extrapolation(known, params, tokens).to_document(),
    }
