"""Chinchilla: loss from size and data alone, every run treated as dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import RequestError
from . import size_law
from .base import Law, Number, Parameter, Terms
from .runs import Runs


@dataclass(frozen=True)
class Chinchilla(Law):
    """L = E + A/N^alpha + B/D^beta (Hoffmann et al., arXiv 2203.15556, eq. 10); no representations."""

    name: ClassVar[str] = "chinchilla"
    formula: ClassVar[str] = "L = E + A/N^alpha + B/D^beta"
    source: ClassVar[str] = (
        "Hoffmann et al., Training Compute-Optimal Large Language Models, arXiv 2203.15556, eq. 10"
    )
    columns: ClassVar[tuple[str, ...]] = ()

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """E, A, alpha, B, beta."""
        return size_law.PARAMETERS

    @property
    def conventions(self) -> Mapping[str, str | bool]:
        """None."""
        return {}

    def terms(self, runs: Runs) -> Terms:
        """One A for all runs."""
        return size_law.SizeTerms(
            runs=runs,
            groups=np.zeros(len(runs), dtype=np.intp),
            group_names=("dense",),
            shape_axes=(),
            shape=None,
            read_rho=lambda coefficients, outer: {},
            points=28,
        )

    def loss(self, parameters: Mapping[str, Number], params: float, tokens: float, rho: Number) -> Number:
        """The formula at N rho."""
        return size_law.loss(parameters, params, tokens, rho)

    def price(self, parameters: Mapping[str, Number], features: Mapping[str, float]) -> Number:
        """1 for dense; refused otherwise, for every run counts as dense here."""
        if not any(features.values()):
            return 1.0
        raise RequestError(
            "the chinchilla law has no multipliers",
            advice="fit the decoupled or the representation law to these runs",
        )
