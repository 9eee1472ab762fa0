"""Effective parameters under laws in which a format does not multiply N: the dense size of the same loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .base import RHO, Features, Law, Number
from .bootstrap import interval
from .multiplier import Multiplier
from .result import Fit
from .runs import Array

_HALVINGS = 60


def effective_multiplier(fit: Fit, name: str, features: Features, params: float, tokens: float) -> Multiplier:
    """N'/N for the N' at which the law, with its columns as they are for dense numbers, gives the loss of
    `features` at N, D.

    Unlike a rho that is fitted it depends on N and D. It stays within the bounds of rho.
    """
    at = features, params, tokens
    draws = dense_ratio(fit.law, fit.drawn, *at) if len(fit.draws) else np.empty(0)
    return Multiplier(
        name=name,
        value=float(dense_ratio(fit.law, fit.values, *at)[0]),
        origin=fit.origin,
        interval=interval(draws) if draws.size else None,
        standard_error=float(draws.std(ddof=1)) if draws.size else None,
        draws=draws,
        note=f"the dense size of the same loss, at N {params:.3g} and D {tokens:.3g}",
    )


def dense_ratio(
    law: Law, values: Mapping[str, Number], features: Features, params: float, tokens: float
) -> Array:
    """The ratio for every draw of the parameters, in their shape, by bisection in log N': the loss falls
    with N'."""
    wanted, dense = np.atleast_1d(law.loss(values, params, tokens, 1.0, features)), law.dense_features
    low, high = np.full(wanted.shape, np.log(RHO.low)), np.full(wanted.shape, np.log(RHO.high))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = np.asarray(law.loss(values, params * np.exp(middle), tokens, 1.0, dense)) > wanted
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(np.exp(0.5 * (low + high)))
