"""The representation law: rho as a function of Gaussian error, with two or three shape parameters in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import RequestError
from . import size_law
from .base import Axis, Law, Number, Parameter, Terms
from .runs import Array, Runs

CEILING = Parameter("L", 0.2, 1.5, "rho that a representation tends to as its error vanishes")
SLOPE = Parameter("F", 0.02, 5.0, "slope of rho per effective bit")
CURVATURE = Parameter("C", 0.1, 6.0, "curvature of rho where the error is near 1")
_SAME = 0.01  # relative spread of the GMSE of one representation that passes as Monte Carlo noise


def effective_bits(gmse: Number) -> Number:
    """log_{1/4} GMSE: the bits at which the Gaussian rate-distortion bound 4^-b has this error."""
    return np.asarray(-np.log(gmse) / np.log(4.0))


def rho_of_gmse(gmse: float, slope: Number, curvature: Number, ceiling: Number = 1.0) -> Number:
    """rho = L tanh(F log_{1/4} GMSE)^C (Panferov et al., arXiv 2506.01863, eq. 3); 1 for GMSE 0, dense.

    Raises RequestError when GMSE is not in [0, 1).
    """
    if not 0.0 <= gmse < 1.0:
        raise RequestError(
            f"GMSE is {gmse:g}, and rho is defined for 0 <= GMSE < 1",
            advice="an error of 1 keeps nothing of the weight",
        )
    if gmse == 0.0:
        return np.ones(np.broadcast(slope, curvature, ceiling).shape)
    value = ceiling * np.tanh(slope * effective_bits(gmse)) ** curvature
    return np.asarray(value)


@dataclass(frozen=True)
class Representation(Law):
    """L = E + A/(N rho)^alpha + B/D^beta with rho = L tanh(F log_{1/4} GMSE)^C (arXiv 2506.01863, eq. 3).

    A run has the columns `gmse_weight` and, where inputs are represented too, `gmse_input`; its rho is the
    product of the two. A GMSE of 0 is dense. free_ceiling: fit L as well; otherwise L = 1.
    """

    name: ClassVar[str] = "representation"
    formula: ClassVar[str] = "L = E + A/(N rho)^alpha + B/D^beta, rho = L tanh(F log_{1/4} GMSE)^C"
    source: ClassVar[str] = (
        "Panferov et al., Unified Scaling Laws for Compressed Representations, arXiv 2506.01863, eq. 3"
    )
    columns: ClassVar[tuple[str, ...]] = ("gmse_weight",)
    free_ceiling: bool = False

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """E, A, alpha, B, beta, F, C and, when free, L."""
        return (*size_law.PARAMETERS, SLOPE, CURVATURE, *((CEILING,) if self.free_ceiling else ()))

    @property
    def conventions(self) -> Mapping[str, str | bool]:
        """Whether L was fitted."""
        return {"free_ceiling": self.free_ceiling}

    def terms(self, runs: Runs) -> Terms:
        """One A for all runs; F and C (and L) join the outer parameters.

        Raises RequestError on a GMSE outside [0, 1), on one representation with two errors, and when every
        run is dense.
        """
        errors = np.stack([runs.numbers("gmse_weight"), runs.numbers("gmse_input", default=0.0)], axis=1)
        bad = np.flatnonzero(((errors < 0) | (errors >= 1)).any(axis=1))
        if bad.size:
            raise RequestError(
                f"GMSE is {errors[bad[0]].max():g}, and rho is defined for 0 <= GMSE < 1",
                where=runs.addresses[bad[0]],
            )
        if not (errors > 0).any():
            raise RequestError(
                "every run has GMSE 0, so nothing says what an error costs",
                where=runs.data,
                advice="add runs of a compressed representation, or fit the chinchilla law",
            )
        by_name = {name: _one_error(runs, errors, name) for name in runs.names}

        def read_rho(coefficients: Array, outer: Array) -> dict[str, Array]:
            found = {
                "F": outer[:, 2],
                "C": outer[:, 3],
                "L": outer[:, 4] if self.free_ceiling else np.ones(len(outer)),
            }
            return {
                name: np.asarray(self.price(dict(found), {"gmse_weight": weight, "gmse_input": inputs}))
                for name, (weight, inputs) in by_name.items()
            }

        shape_axes = (Axis(SLOPE, 9), Axis(CURVATURE, 8), *((Axis(CEILING, 4),) if self.free_ceiling else ()))
        return size_law.SizeTerms(
            runs=runs,
            groups=np.zeros(len(runs), dtype=np.intp),
            group_names=("dense",),
            shape_axes=shape_axes,
            shape=lambda outer: _shape(errors, outer),
            read_rho=read_rho,
            points=12,
        )

    def loss(self, parameters: Mapping[str, Number], params: float, tokens: float, rho: Number) -> Number:
        """The formula at a multiplier."""
        return size_law.loss(parameters, params, tokens, rho)

    def price(self, parameters: Mapping[str, Number], features: Mapping[str, float]) -> Number:
        """rho(gmse_weight) rho(gmse_input)."""
        ceiling = parameters.get("L", 1.0)
        value: Number = 1.0
        for name in ("gmse_weight", "gmse_input"):
            value = value * rho_of_gmse(features.get(name, 0.0), parameters["F"], parameters["C"], ceiling)
        return value


def _one_error(runs: Runs, errors: Array, name: str) -> tuple[float, float]:
    """The GMSE pair of a representation: the mean over its runs, which must agree."""
    rows = errors[np.array([other == name for other in runs.representation])]
    mean = rows.mean(axis=0)
    if (np.ptp(rows, axis=0) > _SAME * mean).any():
        raise RequestError(
            f"representation {name!r} has runs with different GMSE ({rows.min():g} to {rows.max():g})",
            where=runs.data,
            advice="give each error its own representation name",
        )
    return float(mean[0]), float(mean[1])


def _shape(errors: Array, outer: Array) -> size_law.Shape:
    """log rho = sum over weights and inputs of log L + C log tanh(F b), at outer = (F, C[, L])."""
    count = outer.shape[1]
    compressed = errors > 0
    bits = np.where(compressed, effective_bits(np.where(compressed, errors, 0.5)), 1.0)
    slope, curvature = outer[:, 0, None, None], outer[:, 1, None, None]
    angle = slope * bits
    log_tanh = np.where(compressed, np.log(np.tanh(angle)), 0.0).sum(axis=2)
    rate = 2 * bits / np.sinh(2 * np.minimum(angle, 300.0))  # d log tanh(F b) / dF
    curve = -2 * bits * rate / np.tanh(2 * angle)  # its derivative
    first = np.where(compressed, rate, 0.0).sum(axis=2)
    second = np.where(compressed, curve, 0.0).sum(axis=2)

    value = curvature[..., 0] * log_tanh
    gradient = np.zeros((*value.shape, count))
    hessian = np.zeros((*gradient.shape, count))
    gradient[..., 0] = curvature[..., 0] * first
    gradient[..., 1] = log_tanh
    hessian[..., 0, 0] = curvature[..., 0] * second
    hessian[..., 0, 1] = hessian[..., 1, 0] = first
    if count == 3:
        parts = compressed.sum(axis=1)
        value = value + parts * np.log(outer[:, 2, None])
        gradient[..., 2] = parts / outer[:, 2, None]
        hessian[..., 2, 2] = -parts / outer[:, 2, None] ** 2
    return size_law.Shape(value, gradient, hessian)
