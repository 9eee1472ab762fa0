"""Sentences that a report derives from its numbers: the answer, hit or miss, and what is missing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..plots.data import PredictionRow, StoredPoint
from ..plots.text import GREEK, count, decimals, interval, significant
from .data import ReportData

_RESULTS = {
    True: "inside the interval: the prediction holds",
    False: "outside the interval: the prediction misses",
    None: "and there is no interval to judge by",
}
_TELLS_NOTHING = 10.0  # from the lower end of an interval of rho to the upper
_LIMITS = (32.0, 8.5, 4.5, 3.0, 2.0, 1.0)  # stored bits
_HOWS = {"as it is": "", "trained": ", trained", "scratch": ", trained from scratch"}


def answer(data: ReportData) -> str:
    """The answer in one sentence: the strongest statement that the data support."""
    if data.predictions:
        return _predicted(data.predictions, data.units.budget)
    if data.fit is not None:
        return _worth(data.fit)
    if any(point.name != "dense" for point in data.stored):
        return _fewest(data.stored)
    if data.runs:
        runs, kinds = len(data.runs), len({run.representation for run in data.runs})
        return f"On record: {many(runs, 'run')} of {many(kinds, 'format')}; no law has been fitted yet."
    return "There are no runs yet, so there is nothing to answer from."


def verdict(row: PredictionRow) -> str:
    """Hit or miss in words, with the distance of a miss, in the unit of the loss."""
    if row.measured is None:
        return "not measured yet"
    if row.interval is None:
        return "no interval to judge by"
    low, high = row.interval
    if row.hit:
        return "hit: inside the interval"
    if row.measured > high:
        return f"miss: {significant(row.measured - high, 2)} above the interval"
    if row.measured < low:
        return f"miss: {significant(low - row.measured, 2)} below the interval"
    return "miss: the measured loss is not a number"


def missing(data: ReportData) -> tuple[str, ...]:
    """Why parts of the page are absent, and how to get them."""
    held = any(run.held_out for run in data.runs)
    curves = any(run.train_curve for run in data.runs)
    reasons = {
        "No formats were named, so there is no table of them.": not (data.formats or data.stored),
        "No runs are recorded, so there are no loss curves. `rhoc sweep run` trains them.": not data.runs,
        "The runs came without training curves, so only their final losses are shown.": data.runs
        and not curves,
        "No law has been fitted, so there are no parameters, multipliers or residuals. See `rhoc fit`.": (
            data.fit is None and not data.stored
        ),
        "No combination was held back and predicted, so nothing tests the law on what it has not seen.": (
            not data.predictions and not held and not data.stored
        ),
        "Runs were held back, but nothing was predicted for them. `rhoc predict` does it.": (
            not data.predictions and held
        ),
    }
    return tuple(sentence for sentence, absent in reasons.items() if absent)


def symbol(parameter: str) -> str:
    """A parameter as a table shows it: Greek letter and name."""
    return f"{GREEK[parameter]} ({parameter})" if parameter in GREEK else parameter


def formula_with_numbers(formula: str, parameters: Mapping[str, Any]) -> str:
    """A law's formula with fitted numbers in the place of its parameters; left-hand sides stay."""

    def put(match: re.Match[str]) -> str:
        value = parameters.get(match[0])
        return match[0] if value is None else significant(float(value), 3)

    return re.sub(r"\b[A-Za-z_]\w*\b(?!\s*=)", put, formula)


def _predicted(rows: Sequence[PredictionRow], budget: str) -> str:
    measured = [row for row in rows if row.measured is not None]
    if not measured:
        return (
            f"The law predicts a loss of {_loss(rows[0])} for {_where(rows[0], budget)}; "
            "it has not been trained, so nothing has tested this yet."
        )
    if len(measured) == 1:
        (row,) = measured
        return (
            f"Before it was trained, the law gave {_where(row, budget)} a loss of {_loss(row)}; "
            f"training it gave {decimals(row.measured, 3)}, {_RESULTS[row.hit]}."
        )
    hits = sum(bool(row.hit) for row in measured)
    return f"{hits} of {len(measured)} held-back runs ended inside the 95% interval predicted for them."


def _fewest(points: Sequence[StoredPoint]) -> str:
    """What keeps the loss lowest, within limits on stored bits."""
    best: dict[StoredPoint, float] = {}
    for limit in _LIMITS:
        within = [point for point in points if point.bits <= limit and point.name != "dense"]
        if within:
            best.setdefault(min(within, key=lambda p: (p.loss, p.bits)), limit)
    listed = "; ".join(_least(point, limit) for point, limit in best.items())
    dense = min((point.loss for point in points if point.name == "dense"), default=None)
    beside = "" if dense is None else f". Dense is at {decimals(dense, 3)}"
    return f"The least loss of a packed model: {listed}{beside}."


def _least(point: StoredPoint, limit: float) -> str:
    bits = f"{limit:g} bit{'s' * (limit != 1)}"
    found = f"{decimals(point.loss, 3)} in {decimals(point.bits, 2)}"
    return f"within {bits} {point.name}{_HOWS[point.how]} ({found})"


def _loss(row: PredictionRow) -> str:
    ends = "" if row.interval is None else f" (95% interval {interval(row.interval)})"
    return f"{decimals(row.predicted, 3)}{ends}"


def _where(row: PredictionRow, budget: str) -> str:
    size, data = f"N = {count(row.params)} parameters", f"D = {count(row.tokens)} {budget}"
    return f"{row.representation} at {size} and {data}"


def _worth(fit: Mapping[str, Any]) -> str:
    rho = {name: entry["value"] for name, entry in (fit.get("rho") or {}).items() if name != "dense"}
    outcome = str(fit.get("outcome"))
    doubt = "" if outcome == "converged" else f" (outcome of the fit: {outcome.replace('_', ' ')}, see below)"
    if not rho:
        return f"The {fit['law']} law is fitted to {many(int(fit.get('n_runs') or 0), 'run')}{doubt}."
    if all(_open(fit["rho"][name].get("interval")) for name in rho):
        return f"These runs do not tell what a parameter of these formats is worth{doubt}."
    best, worst = max(rho, key=lambda name: rho[name]), min(rho, key=lambda name: rho[name])
    text = f"Of {many(len(rho), 'compressed format')}, {best} keeps most: one of its parameters is worth "
    text += f"{decimals(rho[best], 2)} dense ones"
    return text + (f", one of {worst} {decimals(rho[worst], 2)}" if worst != best else "") + f"{doubt}."


def _open(interval: Sequence[float | None] | None) -> bool:
    """Whether an interval of rho leaves more than a factor of ten open."""
    if interval is None:
        return False
    low, high = (math.inf if end is None else float(end) for end in interval)
    return high > _TELLS_NOTHING * low


def many(number: int, noun: str) -> str:
    """A number and its noun, in the plural but for one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
