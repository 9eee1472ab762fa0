"""Forecasts beyond the data, with an interval that has more in it than the noise of the runs.

Its parts are independent and add up in squares: what the bootstrap and the residual noise say, how laws that
forecast about as well inside the data differ, and how wrong such forecasts were there, by distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import RequestError
from ..backtest import Backtest
from ..base import Features
from ..bootstrap import interval
from ..result import Fit, rho_column
from ..runs import Array

_ALIKE = 0.01  # weight below which a law is not worth a word


@dataclass(frozen=True)
class Width:
    """95 % half widths of log loss, downwards and upwards: of the bootstrap with the noise of one run, of the
    spread between laws, and of drift. spread and drift are symmetric.
    """

    down: float
    up: float
    spread: float
    drift: float

    def around(self, loss: float) -> tuple[float, float]:
        """The interval of a loss."""
        down, up = (float(np.sqrt(side**2 + self.spread**2 + self.drift**2)) for side in (self.down, self.up))
        return loss * float(np.exp(-down)), loss * float(np.exp(up))


@dataclass(frozen=True)
class Extrapolated:
    """A forecast: loss in nats per token, its 95 % interval, what the width is made of, and who says so.

    distance: log10 beyond the runs, 0 inside; weights: of the laws by name; backtests: of each.
    """

    loss: float
    interval: tuple[float, float]
    width: Width
    distance: float
    weights: dict[str, float]
    backtests: dict[str, Backtest]

    @property
    def parts(self) -> str:
        """The interval's width in words."""
        noise = 50 * (self.width.down + self.width.up)
        said = [f"noise and parameters {noise:.2g} %"]
        if len(self.weights) > 1:
            said.append(f"spread between laws {100 * self.width.spread:.2g} %")
        if self.distance > 0:
            said.append(f"drift over {self.distance:.2g} decades {100 * self.width.drift:.2g} %")
        leading = max(self.weights, key=lambda name: self.weights[name])
        return f"half width of the loss: {', '.join(said)} ({drift_in_words(self.backtests[leading])})"

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "loss": self.loss,
            "loss_interval": list(self.interval),
            "loss_interval_parts": self.parts,
            "distance": self.distance,
            "weights": dict(self.weights),
        }


def extrapolate(
    fits: Sequence[Fit],
    params: float,
    tokens: float,
    representation: str = "dense",
    features: Features | None = None,
) -> Extrapolated:
    """The loss at N `params` and D `tokens` by several laws fitted to the same runs, each with draws and a
    backtest.

    Laws weigh by their errors over the forecasts that all of them made: mean square error to the power of
    minus half the independent cuts, which is their likelihood where the size of the error is unknown.
    Raises RequestError without fits, and for one without draws or backtest.
    """
    _check(fits)
    weights = law_weights([_backtest(fit) for fit in fits])
    losses = np.array([_loss(fit, params, tokens, representation, features) for fit in fits])
    centre = float(np.exp(weights @ np.log(losses)))
    spread = float(np.sqrt(weights @ np.square(np.log(losses / centre))))
    ends = np.log([_noise(fit, params, tokens, representation, features) for fit in fits])
    down, up = np.sqrt(weights @ np.square(ends - np.log(losses)[:, None]))
    distances = [_backtest(fit).distance(params, tokens) for fit in fits]
    drifts = [_backtest(fit).drift.reach(d) for fit, d in zip(fits, distances, strict=True)]
    width = Width(float(down), float(up), 1.96 * spread, float(np.sqrt(weights @ np.square(drifts))))
    return Extrapolated(
        loss=centre,
        interval=width.around(centre),
        width=width,
        distance=max(distances),
        weights={f.law.name: float(w) for f, w in zip(fits, weights, strict=True) if w > _ALIKE},
        backtests={f.law.name: _backtest(f) for f in fits},
    )


def law_weights(backtests: Sequence[Backtest]) -> Array:
    """Weights of laws, adding up to 1; equal where they have no forecast in common."""
    shared = frozenset.intersection(*(frozenset(f.key for f in b.forecasts) for b in backtests))
    if not shared:
        return np.full(len(backtests), 1 / len(backtests))
    cuts = 0.5 * len({key[:2] for key in shared})
    logs = -cuts * np.log([max(b.error_over(shared), 1e-12) for b in backtests])
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def drift_in_words(backtest: Backtest) -> str:
    """What the drift of a fit rests on."""
    drift = backtest.drift
    size = f"{100 * drift.per_decade:.2g} % per factor of ten"
    if not drift.cuts:
        return f"drift {size} as in published sets, for these runs are too few to test it"
    return f"drift {size}, from {drift.cuts} hold-outs of the largest budgets and sizes"


def _loss(fit: Fit, params: float, tokens: float, name: str, features: Features | None) -> float:
    rho = fit.rho[name].value if fit.law.rho else 1.0
    return fit.loss(params, tokens, rho, {"representation": name, **(features or {})})


def _noise(
    fit: Fit, params: float, tokens: float, name: str, features: Features | None
) -> tuple[float, float]:
    """The interval of one run by draws and residual noise."""
    rho = fit.draws.column(rho_column(name)) if fit.law.rho else 1.0
    given = {"representation": name, **(features or {})}
    drawn = np.asarray(fit.law.loss(fit.drawn, params, tokens, rho, given))
    return interval(np.outer(drawn, np.exp(-fit.residual_noise)).ravel())


def _backtest(fit: Fit) -> Backtest:
    assert fit.backtest is not None
    return fit.backtest


def _check(fits: Sequence[Fit]) -> None:
    if not fits:
        raise RequestError("there is no fit to extrapolate", advice="fit at least one law to the runs")
    for fit in fits:
        fit.check_usable()
        if fit.backtest is None or len(fit.draws) < 2:
            missing = "backtest" if fit.backtest is None else "bootstrap draws"
            raise RequestError(
                f"the fit of the {fit.law.name} law has no {missing}", where=fit.data, advice="fit it again"
            )
