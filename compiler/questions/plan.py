"""`rhoc plan`: the best N, D and format under a budget, with intervals from every draw of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.errors import RequestError
from ...runtime.laws.bootstrap import interval
from ...runtime.laws.predict import extrapolation
from ...runtime.laws.result import Fit
from ...runtime.laws.runs import Array
from .contender import contenders
from .cost_model import CostModel
from .optimum import Budget, Case, Optimum
from .voice import Voice, choose_voice, multipliers


@dataclass(frozen=True)
class Plan:
    """Formats in order of the loss they reach in a budget, and those that the voice cannot speak of."""

    voice: Voice
    budget: Budget
    cost: CostModel
    rows: tuple[dict[str, Any], ...]
    unknown: tuple[dict[str, Any], ...]

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "source": self.voice.source,
            "interval_note": self.voice.note,
            "budget": budget_document(self.budget),
            "cost": self.cost.to_document(),
            "formats": list(self.rows),
            "unknown": list(self.unknown),
        }


def plan(
    questions: Sequence[str],
    budget: Budget,
    cost: CostModel,
    *,
    fit: Fit | None = None,
    source: str | None = None,
) -> Plan:
    """The plan of every format in a budget: least loss first.

    questions: shipped names, files, text forms or NAME=SPEC; none: all that the voice knows by name.
    Raises RequestError when the budget limits nothing, or when no format can be planned for.
    """
    budget.check()
    cases, unknown = cases_of(questions, cost, fit, source)
    solved = {case.format.name: (case, case.optimum(budget)) for case in cases}
    for name, (_, optimum) in list(solved.items()):
        if not np.isfinite(optimum.loss[0, 0]):
            unknown.append(
                {"format": name, "reason": "the budget does not pay for one token of such a model"}
            )
            del solved[name]
    if not solved:
        raise RequestError(f"no format can be planned for: {unknown[0]['reason']}", advice="raise the budget")
    order = sorted(solved.values(), key=lambda pair: float(pair[1].loss[0, 0]))
    rows = tuple(_row(case, optimum, order[0][1].loss) for case, optimum in order)
    return Plan(order[0][0].voice, budget, cost, rows, tuple(unknown))


def cases_of(
    questions: Sequence[str], cost: CostModel, fit: Fit | None, source: str | None
) -> tuple[list[Case], list[dict[str, Any]]]:
    """Formats with their multipliers under one voice that has losses; and those it cannot speak of.

    Raises RequestError when it can speak of none.
    """
    voice = choose_voice([], fit, source, losses=True)
    if fit is None and source is None and questions:
        asked = [each.format for each in contenders(questions).values()]
        voice = choose_voice(asked, losses=True)
    found = contenders(questions or voice.names, voice)
    known, unknown = multipliers(voice, {name: each.format for name, each in found.items()})
    if not known:
        raise RequestError(f"nothing is known of these formats: {unknown[0]['reason']}", where=voice.source)
    return [Case(found[name], rho, voice, cost) for name, rho in known.items()], unknown


def budget_document(budget: Budget) -> dict[str, Any]:
    """A budget of plain numbers as JSON."""
    return {
        "flops": budget.flops, "bytes": budget.nbytes, "tokens": budget.tokens, "served": budget.served,
        "params": budget.params,
    }  # fmt: skip


def spread(values: Array) -> list[float] | None:
    """The 95 % interval of the draws, rows 1 and on of [rows, 1]; None without draws."""
    draws = values[1:, 0]
    return list(interval(draws)) if len(draws) and np.isfinite(draws).all() else None


def _row(case: Case, optimum: Optimum, best: Array) -> dict[str, Any]:
    voice, multiplier = case.voice, case.multiplier
    params, tokens = float(optimum.params[0, 0]), float(optimum.tokens[0, 0])
    there = voice.losses(np.array([[params]]), np.array([[tokens]]), multiplier)
    memory = case.nbytes
    rho = multiplier.interval
    return {
        "format": case.format.name,
        "loss": float(optimum.loss[0, 0]),
        "loss_interval": spread(there),
        "loss_behind_best": float(optimum.loss[0, 0] - best[0, 0]),
        "loss_behind_best_interval": spread(optimum.loss - best),
        "params": params,
        "params_interval": spread(optimum.params),
        "tokens": tokens,
        "tokens_interval": spread(optimum.tokens),
        "tokens_per_param": tokens / params,
        "bytes": None if memory is None else params * memory,
        "bits_per_weight": case.format.bits,
        "rho": multiplier.value,
        "rho_interval": None if rho is None else list(rho),
        "effective_parameters": params * multiplier.value,
        "training_time": case.training_time,
        "bound": "memory" if bool(optimum.bound[0, 0]) else "",
        "extrapolation": voice.range and extrapolation(voice.range, params, tokens).to_document(),
    }
