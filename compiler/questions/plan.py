"""`rhoc plan`: the best N, D and format under a budget, with intervals from every draw of the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.errors import RequestError
from ...runtime.laws.base import Features, Law
from ...runtime.laws.bootstrap import interval
from ...runtime.laws.effective import dense_ratio
from ...runtime.laws.formula import names_in, parse
from ...runtime.laws.multiplier import Multiplier
from ...runtime.laws.predict import extrapolation
from ...runtime.laws.result import Fit
from ...runtime.laws.runs import Array
from ..columns import Columns, checked, columns_in_words, features_of
from .contender import Contender, contenders
from .cost_model import CostModel
from .optimum import Budget, Case, Optimum
from .voice import Voice, choose_voice


@dataclass(frozen=True)
class Plan:
    """Formats in order of the loss they reach in a budget, and those that the voice cannot speak of."""

    voice: Voice
    budget: Budget
    cost: CostModel
    rows: tuple[dict[str, Any], ...]
    unknown: tuple[dict[str, Any], ...]
    columns: dict[str, Features]

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "source": self.voice.source,
            "interval_note": self.voice.note,
            "budget": budget_document(self.budget),
            "cost": self.cost.to_document(),
            **columns_document(self.voice, self.columns),
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
    columns: Columns | None = None,
) -> Plan:
    """The plan of every format in a budget: least loss first.

    questions: shipped names, files, text forms or NAME=SPEC; none: all that the voice knows by name.
    columns: what its law reads beside N, D and rho.
    Raises RequestError when the budget limits nothing, or when no format can be planned for.
    """
    budget.check()
    cases, unknown = cases_of(questions, cost, fit, source, columns)
    solved = {case.format.name: (case, case.optimum(budget)) for case in cases}
    for name, (case, optimum) in list(solved.items()):
        if not np.isfinite(optimum.loss[0, 0]):
            unknown.append({"format": name, "reason": _too_large(case, budget)})
            del solved[name]
    if not solved:
        raise RequestError(f"no format can be planned for: {unknown[0]['reason']}", advice="raise the budget")
    order = sorted(solved.values(), key=lambda pair: float(pair[1].loss[0, 0]))
    rows = tuple(_row(case, optimum, order[0][1].loss) for case, optimum in order)
    given = {case.format.name: case.features for case, _ in order}
    return Plan(order[0][0].voice, budget, cost, rows, tuple(unknown), given)


def cases_of(
    questions: Sequence[str],
    cost: CostModel,
    fit: Fit | None,
    source: str | None,
    columns: Columns | None = None,
) -> tuple[list[Case], list[dict[str, Any]]]:
    """Formats with their multipliers under one voice that has losses; and those it cannot speak of.

    Raises RequestError when it can speak of none, and for columns that its law does not read.
    """
    asked_columns = columns or Columns()
    voice = choose_voice([], fit, source, losses=True)
    if fit is None and source is None and questions:
        asked = [each.format for each in contenders(questions).values()]
        voice = choose_voice(asked, losses=True)
    _check_size(voice.law)
    found = contenders(questions or voice.names, voice, tuple(asked_columns.own))
    asked_columns.check(found)
    cases, unknown = [], []
    for name, each in found.items():
        given = asked_columns.of(name)
        checked(voice.law, given)
        try:
            features = features_of(voice.law, name, given, voice.columns)
            rho = _multiplier(voice, each, features, told=name in asked_columns.own or name in voice.told)
        except RequestError as error:
            unknown.append({"format": name, "reason": str(error)})
        else:
            cases.append(Case(each, rho, voice, cost, {"representation": name, **features}))
    if not cases:
        raise RequestError(f"nothing is known of these formats: {unknown[0]['reason']}", where=voice.source)
    return cases, unknown


def columns_document(voice: Voice, given: Mapping[str, Features]) -> dict[str, Any]:
    """Columns of the law by format as JSON, and in words."""
    shown = {
        name: {column: value for column, value in features.items() if column != "representation"}
        for name, features in given.items()
    }
    return {"columns": shown, "columns_notes": list(columns_in_words(voice.law, shown))}


def _check_size(law: Law) -> None:
    if "N" not in {name.name for name in names_in(parse(law.formula))}:
        raise RequestError(
            f"the {law.name} law has no N in its formula, so it knows no best size", advice="use another law"
        )


def _multiplier(voice: Voice, each: Contender, features: Features, *, told: bool) -> Multiplier:
    """rho of a format. A law without multipliers tells formats by parameters or columns of their own."""
    law, name = voice.law, each.name
    if not law.rho and told:
        return Multiplier(name, 1.0, voice.origin, draws=np.ones(voice.rows - 1))
    if law.prices_features and features.keys() & {used.name for used in names_in(parse(law.rho))}:
        if name in voice.names and name != law.baseline:
            raise RequestError(
                f"rho of {name!r} is known, and --column would change it", advice="give it another name"
            )
        return voice.priced(name, {**each.format.features, **features})
    return voice.multiplier(each.format)


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
    there = voice.losses(np.array([[params]]), np.array([[tokens]]), multiplier, case.features)
    memory = case.nbytes
    rho, rho_interval = _worth(case, params, tokens)
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
        "rho": rho,
        "rho_interval": rho_interval,
        "effective_parameters": params * rho,
        "training_time": case.training_time,
        "bound": "memory" if bool(optimum.bound[0, 0]) else "",
        "extrapolation": voice.range and extrapolation(voice.range, params, tokens).to_document(),
    }


def _too_large(case: Case, budget: Budget) -> str:
    """Why a budget holds no model in a format: too little memory for the N that is given, or no tokens."""
    if budget.params is not None and budget.nbytes is not None and case.nbytes is not None:
        needed = float(budget.params) * case.nbytes
        if needed > float(budget.nbytes):
            return f"{budget.params:.3g} parameters of it take {needed:.3g} bytes"
    return "the budget does not pay for one token of such a model"


def _worth(case: Case, params: float, tokens: float) -> tuple[float, list[float] | None]:
    """rho with its interval; under laws without multipliers, of the dense size of the same loss."""
    law, multiplier = case.voice.law, case.multiplier
    if law.rho or (case.features.keys() == {"representation"} and case.format.name == law.baseline):
        ends = multiplier.interval
        return multiplier.value, None if ends is None else list(ends)
    found = dense_ratio(law, case.voice.values, case.features, params, tokens)
    return float(found[0, 0]), spread(found)
