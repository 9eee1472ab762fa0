"""Predictions of a fit: loss, effective parameters, and how far the question lies from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RequestError
from .base import Features
from .bootstrap import interval
from .compose import Composition
from .result import Fit, Range
from .uncertainty.extrapolate import Width, drift_in_words

INTERVAL_NOTE = (
    "95 % prediction interval for the loss of one run: bootstrap draws of the fit, residual noise added"
)
BLIND_NOTE = "; the error of the law's form outside the data is not in it, for this fit has no backtest"


@dataclass(frozen=True)
class Extrapolation:
    """Distance of a question from the runs in factors of ten, 0 inside: of N, of D and of D/N."""

    log10_params: float
    log10_tokens: float
    log10_tokens_per_param: float

    @property
    def inside(self) -> bool:
        """Whether N and D both lie within the range of the runs."""
        return self.log10_params == 0 and self.log10_tokens == 0

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "inside": self.inside,
            "log10_params": self.log10_params,
            "log10_tokens": self.log10_tokens,
            "log10_tokens_per_param": self.log10_tokens_per_param,
        }


@dataclass(frozen=True)
class Prediction:
    """Loss (nats per token) and effective parameters N rho at N, D and a multiplier, with 95 % intervals.

    loss_interval: outside the runs with the drift of the fit's backtest; note: what is in it, in words.
    """

    params: float
    tokens: float
    loss: float
    loss_interval: tuple[float, float] | None
    effective_parameters: float
    effective_parameters_interval: tuple[float, float] | None
    extrapolation: Extrapolation
    composition: Composition
    note: str

    def to_document(self) -> dict[str, Any]:
        """As plain JSON, with the multiplier and its source."""
        spread = self.effective_parameters_interval
        return self.composition.to_document() | {
            "params": self.params,
            "tokens": self.tokens,
            "loss": self.loss,
            "loss_interval": None if self.loss_interval is None else list(self.loss_interval),
            "loss_interval_note": self.note,
            "effective_parameters": self.effective_parameters,
            "effective_parameters_interval": None if spread is None else list(spread),
            "extrapolation": self.extrapolation.to_document(),
        }


def extrapolation(range_: Range, params: float, tokens: float) -> Extrapolation:
    """How far N, D and D/N lie outside a range."""
    return Extrapolation(
        _outside(range_.params, params),
        _outside(range_.tokens, tokens),
        _outside(range_.tokens_per_param, tokens / params),
    )


def predict(
    fit: Fit, composition: Composition, params: float, tokens: float, features: Features | None = None
) -> Prediction:
    """What a fit says about N `params`, D `tokens` and a multiplier of its own.

    features: columns of the law by name, where they are not at their defaults.
    Raises RequestError on non-positive N or D, and on a multiplier of another fit.
    """
    fit.check_usable()
    check_budget(params, tokens)
    multiplier = composition.multiplier
    if multiplier.origin != fit.origin:
        raise RequestError(
            f"{multiplier.name!r} comes from another fit than this one: {multiplier.origin}",
            advice="rho means nothing under other exponents; take it from the fit that predicts",
        )
    loss = fit.loss(params, tokens, multiplier.value, features)
    distance = extrapolation(fit.range, params, tokens)
    loss_interval = spread = None
    note = "no interval: the fit has no bootstrap draws"
    if multiplier.draws.size:
        drawn = np.asarray(fit.law.loss(fit.drawn, params, tokens, multiplier.draws, features))
        inside = interval(np.outer(drawn, np.exp(-fit.residual_noise)).ravel())
        loss_interval, note = _with_drift(fit, inside, loss, (params, tokens), distance.inside)
        spread = interval(params * multiplier.draws)
    return Prediction(
        params=params,
        tokens=tokens,
        loss=loss,
        loss_interval=loss_interval,
        effective_parameters=params * multiplier.value,
        effective_parameters_interval=spread,
        extrapolation=distance,
        composition=composition,
        note=note,
    )


def _with_drift(
    fit: Fit, ends: tuple[float, float], loss: float, at: tuple[float, float], inside: bool
) -> tuple[tuple[float, float], str]:
    """An interval widened by what the fit's forecasts missed over such a distance, and what is in it."""
    if fit.backtest is None:
        return ends, INTERVAL_NOTE + ("" if inside else BLIND_NOTE)
    distance = fit.backtest.distance(*at)
    if distance == 0:
        return ends, INTERVAL_NOTE
    low, high = np.log(np.array(ends) / loss)
    width = Width(max(-low, 0.0), max(high, 0.0), 0.0, fit.backtest.drift.reach(distance))
    words = f"{drift_in_words(fit.backtest)}, over {distance:.2g} decades beyond the runs"
    return width.around(loss), f"{INTERVAL_NOTE}, and {words}"


def check_budget(params: float, tokens: float) -> None:
    """Raises RequestError unless N and D are positive and finite."""
    for name, value in (("params", params), ("tokens", tokens)):
        if not (np.isfinite(value) and value > 0):
            raise RequestError(
                f"{name} is {value:g}, not a positive finite number", advice="counts are plain numbers: 1e9"
            )


def _outside(range_: tuple[float, float], value: float) -> float:
    low, high = (float(np.log10(end)) for end in range_)
    at = float(np.log10(value))
    return round(max(low - at, at - high, 0.0), 6)
