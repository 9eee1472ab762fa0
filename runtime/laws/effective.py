"""Effective parameters under laws in which a format does not multiply N: the dense size of the same loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .base import RHO, Features, Number
from .bootstrap import interval
from .multiplier import Multiplier
from .result import Fit
from .runs import Array

_HALVINGS = 60


def effective_multiplier(fit: Fit, name: str, features: Features, params: float, tokens: float) -> Multiplier:
    """N'/N for the N' at which the law, with its columns at their defaults, gives the loss of `features` at
    N, D.

    Unlike a rho that is fitted it depends on N and D. It stays within the bounds of rho.
    """
    draws = _ratio(fit, fit.drawn, features, params, tokens) if len(fit.draws) else np.empty(0)
    return Multiplier(
        name=name,
        value=float(_ratio(fit, fit.values, features, params, tokens)[0]),
        origin=fit.origin,
        interval=interval(draws) if draws.size else None,
        standard_error=float(draws.std(ddof=1)) if draws.size else None,
        draws=draws,
        note=f"the dense size of the same loss, at N {params:.3g} and D {tokens:.3g}",
    )


def _ratio(fit: Fit, values: Mapping[str, Number], features: Features, params: float, tokens: float) -> Array:
    """The ratio for every draw, [draws], by bisection in log N': the loss falls with N'."""
    wanted = np.atleast_1d(fit.law.loss(values, params, tokens, 1.0, features))
    low, high = np.full(wanted.shape, np.log(RHO.low)), np.full(wanted.shape, np.log(RHO.high))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = np.asarray(fit.law.loss(values, params * np.exp(middle), tokens)) > wanted
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(np.exp(0.5 * (low + high)))
