"""A fit's document as something that answers: which loss does the law give to this run?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.laws import size_law
from .data import Interval, RunRow


@dataclass(frozen=True)
class FittedLaw:
    """A law with fitted numbers, read from a fit's document (`Fit.to_document()`).

    parameters: by name; rho: multiplier by representation, with intervals where the fit has them.
    """

    name: str
    parameters: Mapping[str, float]
    rho: Mapping[str, float]
    rho_interval: Mapping[str, Interval]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> FittedLaw:
        """Read `law`, `parameters` and `rho` of a fit's document."""
        rho: Mapping[str, Mapping[str, Any]] = document.get("rho") or {}
        return cls(
            name=document["law"],
            parameters=dict(document["parameters"]),
            rho={name: entry["value"] for name, entry in rho.items()},
            rho_interval={name: _pair(entry["interval"]) for name, entry in rho.items() if entry.get("interval")},
        )

    def multiplier(self, representation: str) -> float | None:
        """rho of a representation; 1 for dense and under a law without multipliers; None when the fit has not seen it."""
        if representation == "dense" or not self.rho:
            return 1.0
        return self.rho.get(representation)

    def loss(self, representation: str, params: float, tokens: float) -> float | None:
        """The law's loss in nats per token, or None for a representation that the fit has not seen."""
        rho = self.multiplier(representation)
        if rho is None:
            return None
        return float(size_law.loss(self.parameters, params, tokens, rho))

    def loss_of(self, run: RunRow) -> float | None:
        """The law's loss at a run's N, D and representation."""
        return self.loss(run.representation, run.params, run.tokens)


def _pair(values: Any) -> Interval:
    low, high = values
    return float(low), float(high)
