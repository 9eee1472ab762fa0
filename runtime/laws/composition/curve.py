"""The curve of one compression family, rho against Gaussian error, and how it does on formats left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import RequestError
from ..runs import Array
from .search import minimise

_BOUNDS = ((0.02, 5.0), (0.1, 6.0))  # of F and C


@dataclass(frozen=True)
class Curve:
    """rho = tanh(F log_{1/4} GMSE)^C, with slope F and curvature C (arXiv 2506.01863, eq. 3, L = 1)."""

    slope: float
    curvature: float

    def rho(self, gmse: Array) -> Array:
        """The multiplier at an error; 1 at no error, 0 from an error of 1 on."""
        return _rho(np.asarray(gmse), np.asarray(self.slope), np.asarray(self.curvature))


def fit_curve(gmse: Array, rho: Array, factors: Array | None = None) -> Curve:
    """Least squares in rho through the (GMSE, rho) of formats, `[formats]`.

    factors: how many tensors were represented so, each worth the curve: 2 for weights and inputs alike; 1
    when left out. Raises RequestError for fewer than two formats.
    """
    if len(gmse) < 2:
        raise RequestError(
            f"{len(gmse)} format does not fix the two constants of a family", advice="give two or more"
        )
    power = np.ones(len(gmse)) if factors is None else factors
    slope, curvature = minimise(
        lambda p: np.square(_rho(gmse, p[:, :1], p[:, 1:]) ** power - rho).sum(axis=1), _BOUNDS
    )
    return Curve(float(slope), float(curvature))


def leave_one_error_out(gmse: Array, rho: Array, factors: Array) -> Array:
    """Predicted minus given rho of every format, by the curve through those of another GMSE, `[formats]`."""
    errors = np.empty(len(gmse))
    for error in np.unique(gmse):
        out = gmse == error
        curve = fit_curve(gmse[~out], rho[~out], factors[~out])
        errors[out] = curve.rho(gmse[out]) ** factors[out] - rho[out]
    return errors


def _rho(gmse: Array, slope: Array, curvature: Array) -> Array:
    inside = np.clip(gmse, 1e-300, 1.0)
    value = np.tanh(slope * -np.log(inside) / np.log(4.0)) ** curvature
    return np.where(gmse <= 0, 1.0, value)
