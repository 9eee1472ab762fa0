"""A multiplier with everything that it means nothing without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .runs import Array


@dataclass(frozen=True)
class Origin:
    """The fit a multiplier comes from: rho is defined only together with these.

    fit: digest of a fit, or the name of a published one; exponents: every parameter of its law by name.
    """

    fit: str
    law: str
    exponents: Mapping[str, float]
    unit_of_params: str
    data: str

    def __str__(self) -> str:
        exponents = ", ".join(f"{name} {value:.3g}" for name, value in self.exponents.items())
        return f"{self.law} law, {exponents or 'exponents not published'}, on {self.data} [{self.fit}]"

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "fit": self.fit,
            "law": self.law,
            "exponents": dict(self.exponents),
            "unit_of_params": self.unit_of_params,
            "data": self.data,
        }


@dataclass(frozen=True)
class Multiplier:
    """rho of a representation, with the fit it comes from.

    interval: 95 %, or None where the source gives none; covariance: with the parameters of the law, and with
    itself under the name "rho"; draws: joint bootstrap draws, aligned with those of the fit (empty for
    published values). composed_of: the parts of a product, empty for a multiplier read from a fit.
    """

    name: str
    value: float
    origin: Origin
    interval: tuple[float, float] | None = None
    standard_error: float | None = None
    covariance: Mapping[str, float] | None = None
    draws: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    composed_of: tuple[str, ...] = ()
    note: str = ""

    @property
    def source(self) -> str:
        """The fit it speaks from, in words."""
        return f"{self.origin}; {self.note}" if self.note else str(self.origin)

    def to_document(self) -> dict[str, Any]:
        """As plain JSON, without the draws."""
        return {
            "name": self.name,
            "rho": self.value,
            "rho_interval": None if self.interval is None else list(self.interval),
            "standard_error": self.standard_error,
            "rho_source": self.source,
            "rho_origin": self.origin.to_document(),
            "covariance": None if self.covariance is None else dict(self.covariance),
            "composed_of": list(self.composed_of),
        }
