"""Which law to believe: by its forecasts of the runs of largest compute first, by BIC next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RequestError
from .base import Features, Law
from .fit import fit
from .forms import LAWS
from .holdout import Step, forecast_errors, steps_of
from .objective import Residual
from .result import Fit
from .runs import Array, Runs

_LEVEL = 1.25  # ratio of forecast errors below which two laws are not told apart by them
_SAME = 1e-9  # relative difference of objectives of laws that are one and the same on the runs


@dataclass(frozen=True)
class Candidate:
    """A law that the runs support.

    errors: root mean square of log predicted - log measured of the runs left out, for each step; forecast:
    over all steps, None without any; weight: in averages over laws.
    """

    law: Law
    fit: Fit
    errors: tuple[float, ...]
    forecast: float | None
    weight: float

    def to_document(self) -> dict[str, Any]:
        """As plain JSON, for a row of a table."""
        return {
            "law": self.law.name,
            "parameters": self.fit.num_parameters,
            "aicc": self.fit.aicc if np.isfinite(self.fit.aicc) else None,
            "bic": self.fit.bic,
            "forecast_errors": list(self.errors),
            "forecast": self.forecast,
            "weight": self.weight,
            "outcome": self.fit.outcome.value,
        }


@dataclass(frozen=True)
class Selection:
    """Laws in order of preference, the chosen one first, and those that were refused, each with the reason.

    reason: why the first one, in a sentence; steps: what was left out to test forecasts; fit: of the chosen
    law, with draws.
    """

    candidates: tuple[Candidate, ...]
    refused: Mapping[str, str]
    steps: tuple[Step, ...] = field(repr=False)
    reason: str
    fit: Fit

    @property
    def law(self) -> Law:
        """The chosen one."""
        return self.candidates[0].law

    def loss(
        self, params: float, tokens: float, representation: str = "", features: Features | None = None
    ) -> float:
        """The loss in nats per token, averaged over the laws with their weights, in the logarithm.

        Raises RequestError for a representation that a law has no runs of.
        """
        total = 0.0
        for each in self.candidates:
            if each.weight > 0:
                rho = _rho(each.fit, representation)
                total += each.weight * float(np.log(each.fit.loss(params, tokens, rho, features)))
        return float(np.exp(total))

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "law": self.law.name,
            "reason": self.reason,
            "laws": [each.to_document() for each in self.candidates],
            "refused": dict(self.refused),
            "steps": [
                {"steps": s.steps, "flops": s.flops, "runs_left_out": int(s.held.sum())} for s in self.steps
            ],
        }


def select(
    runs: Runs,
    laws: Sequence[Law] | None = None,
    *,
    delta: float = 1e-3,
    bootstraps: int = 1000,
    seed: int = 0,
    residuals: Residual = Residual.LOG,
) -> Selection:
    """The law to believe on these runs, out of `laws` (by default those that ship and read
    columns that there are).

    Each is fitted to all runs, and to those that are left when the largest budgets are left out, one and two
    steps of them. Laws whose root mean square forecast error is within a quarter of the least are not told
    apart by it; of those the one of least BIC is chosen. Averages weigh laws by the inverse of their mean
    squared forecast error (Bates and Granger, The combination of forecasts, 1969).
    Raises RequestError, with every law's reason, when the runs support none.
    """
    steps = steps_of(runs) if len(runs) else ()
    left = {} if laws is not None else {law.name: unfit(law, runs) for law in LAWS}
    tried = LAWS if laws is None else laws
    fits, refused = _fits(runs, [law for law in tried if not left.get(law.name)], delta, residuals)
    refused = {name: reason for name, reason in left.items() if reason} | refused
    if not fits:
        told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise RequestError(f"no law can be fitted to these runs ({told})", where=runs.data)
    errors = {name: _errors(runs, found.law, steps, delta, residuals) for name, found in fits.items()}
    scores = _scores(errors, steps)
    ordered = _ordered(fits, scores)
    weights = _weights(ordered, scores)
    chosen = fit(
        runs, fits[ordered[0]].law, delta=delta, bootstraps=bootstraps, seed=seed, residuals=residuals
    )
    found = tuple(
        Candidate(
            law=fits[name].law,
            fit=chosen if name == ordered[0] else fits[name],
            errors=scores[name] or (),
            forecast=_pooled(scores[name]),
            weight=weights[name],
        )
        for name in ordered
    )
    return Selection(found, refused, steps, _reason(found), chosen)


def unfit(law: Law, runs: Runs) -> str:
    """Why a law that ships is not tried on these runs; empty where it is."""
    own = [column.name for column in law.columns]
    if own and not set(own) & set(runs.columns):
        return f"the runs have no column {' or '.join(own)}"
    told_apart = law.rho or own or any(p.column for p in law.parameters)
    if not told_apart and len(runs.names) > 1:
        return f"it does not tell the {len(runs.names)} representations of these runs apart"
    return ""


def _fits(
    runs: Runs, laws: Sequence[Law], delta: float, residuals: Residual
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Usable fits by name, without draws; and why the other laws have none."""
    found: dict[str, Fit] = {}
    refused: dict[str, str] = {}
    for law in laws:
        try:
            fitted = fit(runs, law, delta=delta, bootstraps=0, residuals=residuals)
        except RequestError as error:
            refused[law.name] = error.message
            continue
        same = next((name for name, other in found.items() if _alike(fitted, other)), None)
        if same is not None:
            refused[law.name] = f"the same as {same} on these runs"
        elif not fitted.outcome.usable:
            refused[law.name] = fitted.message
        else:
            found[law.name] = fitted
    return found, refused


def _alike(first: Fit, second: Fit) -> bool:
    close = np.isclose(first.objective, second.objective, rtol=_SAME, atol=0)
    return bool(close) and first.num_parameters == second.num_parameters


def _errors(runs: Runs, law: Law, steps: Sequence[Step], delta: float, residuals: Residual) -> Array | None:
    """Forecast errors at every step, [steps, runs]; None where a step leaves too few runs for the law."""
    try:
        found = [forecast_errors(runs, law, step, delta=delta, residuals=residuals) for step in steps]
    except RequestError:
        return None
    return np.stack(found) if found else None


def _scores(errors: Mapping[str, Array | None], steps: Sequence[Step]) -> dict[str, tuple[float, ...] | None]:
    """Root mean square error of every step, over the runs that all laws with forecasts can forecast."""
    given = {name: e for name, e in errors.items() if e is not None and np.isfinite(e).any(axis=1).all()}
    none: dict[str, tuple[float, ...] | None] = dict.fromkeys(errors)
    if not given:
        return none
    shared = np.all([np.isfinite(e) for e in given.values()], axis=0)
    if not shared.any(axis=1).all():
        return none
    return none | {
        name: tuple(float(np.sqrt(np.square(e[i][shared[i]]).mean())) for i in range(len(steps)))
        for name, e in given.items()
    }


def _pooled(score: tuple[float, ...] | None) -> float | None:
    return None if not score else float(np.sqrt(np.square(score).mean()))


def _ordered(fits: Mapping[str, Fit], scores: Mapping[str, tuple[float, ...] | None]) -> list[str]:
    """Those level with the best forecast by BIC, the others by forecast, those without one by BIC."""
    pooled = {name: _pooled(scores[name]) for name in fits}
    least = min((value for value in pooled.values() if value is not None), default=0.0)

    def key(name: str) -> tuple[int, float]:
        value = pooled[name]
        if value is None:
            return 2, fits[name].bic
        return (0, fits[name].bic) if value <= _LEVEL * least else (1, value)

    return sorted(fits, key=key)


def _weights(names: Sequence[str], scores: Mapping[str, tuple[float, ...] | None]) -> dict[str, float]:
    """Inverse mean squared forecast errors, adding up to 1; without forecasts, the chosen law alone."""
    pooled = {name: _pooled(scores[name]) for name in names}
    raw = {name: 0.0 if not value else value**-2 for name, value in pooled.items()}
    total = sum(raw.values())
    return {name: value / total if total else float(name == names[0]) for name, value in raw.items()}


def _reason(found: Sequence[Candidate]) -> str:
    best, others = found[0], found[1:]
    if not others:
        return f"{best.law.name}, the only law that these runs support"
    if best.forecast is None:
        gap = min(each.fit.bic for each in others) - best.fit.bic
        return f"{best.law.name}, by the least BIC ({gap:.1f} below the next); too few runs to test forecasts"
    level = [e for e in others if e.forecast is not None and e.forecast <= _LEVEL * _least(found)]
    told = f"{best.law.name} forecasts the largest runs to {100 * best.forecast:.2g} %"
    if level:
        near = ", ".join(f"{e.law.name} {100 * (e.forecast or 0):.2g} %" for e in level)
        gap = min(e.fit.bic for e in level) - best.fit.bic
        return f"{told}, level with {near}, and has the least BIC of these, by {gap:.1f}"
    rest = [e for e in others if e.forecast is not None]
    if not rest:
        return f"{told}; no other law can be tested so"
    return f"{told}, the next best, {rest[0].law.name}, to {100 * (rest[0].forecast or 0):.2g} %"


def _least(found: Sequence[Candidate]) -> float:
    return min(each.forecast for each in found if each.forecast is not None)


def _rho(fitted: Fit, representation: str) -> float:
    """The multiplier of a representation with runs; 1 for the baseline, and under a law without any."""
    if representation in ("", fitted.law.baseline) or not fitted.law.rho:
        return 1.0
    return fitted.multiplier(representation).value
