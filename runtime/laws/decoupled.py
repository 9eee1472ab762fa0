"""The decoupled law: one free multiplier per representation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import RequestError
from . import size_law
from .base import Law, Number, Parameter, Terms
from .runs import Array, Runs


@dataclass(frozen=True)
class Decoupled(Law):
    """L = E + A/(N rho_R)^alpha + B/D^beta with one rho per representation and rho = 1 for the baseline.

    Frantar et al., Compression Scaling Laws (arXiv 2502.16440); the "decoupled" row of Table 1 in Panferov et
    al., Unified Scaling Laws for Compressed Representations (arXiv 2506.01863).

    baseline: the representation whose parameters count as one.
    """

    name: ClassVar[str] = "decoupled"
    formula: ClassVar[str] = "L = E + A/(N rho_R)^alpha + B/D^beta"
    source: ClassVar[str] = (
        "Frantar et al., Compression Scaling Laws, arXiv 2502.16440; arXiv 2506.01863, Table 1"
    )
    columns: ClassVar[tuple[str, ...]] = ()
    baseline: str = "dense"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """E, A, alpha, B, beta; one rho per representation comes on top."""
        return size_law.PARAMETERS

    @property
    def conventions(self) -> Mapping[str, str | bool]:
        """Which representation is the unit of rho."""
        return {"baseline": self.baseline}

    def terms(self, runs: Runs) -> Terms:
        """One coefficient A_R = A rho_R^-alpha per representation, so that the search stays two-dimensional.

        Raises RequestError when no run is of the baseline, without which rho has no unit.
        """
        if self.baseline not in runs.names:
            raise RequestError(
                f"no run is of the baseline representation {self.baseline!r}, so rho has no unit",
                where=runs.data,
                advice=f"add runs of {self.baseline!r}, or name as baseline one of {', '.join(runs.names)}",
            )
        names = (self.baseline, *(name for name in runs.names if name != self.baseline))
        return size_law.SizeTerms(
            runs=runs,
            groups=np.array([names.index(name) for name in runs.representation], dtype=np.intp),
            group_names=names,
            shape_axes=(),
            shape=None,
            read_rho=lambda coefficients, outer: _ratios(names, coefficients, outer),
            points=28,
        )

    def loss(self, parameters: Mapping[str, Number], params: float, tokens: float, rho: Number) -> Number:
        """The formula at a multiplier."""
        return size_law.loss(parameters, params, tokens, rho)

    def price(self, parameters: Mapping[str, Number], features: Mapping[str, float]) -> Number:
        """Refused: a free multiplier says nothing about a representation without runs."""
        raise RequestError(
            "the decoupled law prices only the representations it was fitted to",
            advice="add runs of it, compose it from parts that have runs, or fit the representation law",
        )


def _ratios(names: tuple[str, ...], coefficients: Array, outer: Array) -> dict[str, Array]:
    """rho_R = (A_R / A_baseline)^(-1/alpha), within the bounds of rho; coefficients: E, B, A's."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = -np.log(coefficients[:, 2:] / coefficients[:, 2:3]) / outer[:, :1]
    logs = np.where(np.isnan(logs), 0.0, logs)  # neither has a size term: nothing tells them apart
    rho = np.exp(np.clip(logs, np.log(size_law.RHO.low), np.log(size_law.RHO.high)))
    return {name: rho[:, i] for i, name in enumerate(names)}
