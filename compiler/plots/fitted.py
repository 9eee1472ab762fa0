"""A fit's document as something that answers: which loss does the law give to this run?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...runtime.laws import Law, find_law
from ...runtime.laws.base import law_from_document
from .data import Interval, PredictionRow, RunRow


@dataclass(frozen=True)
class FittedLaw:
    """A law with fitted numbers, read from a fit's document (`Fit.to_document()`).

    parameters: by name; rho: multiplier by representation, with intervals where the fit has them.
    """

    law: Law
    parameters: Mapping[str, float]
    rho: Mapping[str, float]
    rho_interval: Mapping[str, Interval]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> FittedLaw:
        """Read `law`, `conventions`, `parameters` and `rho` of a fit's document.

        Raises RequestError for a law that this version does not know.
        """
        rho: Mapping[str, Mapping[str, Any]] = document.get("rho") or {}
        intervals = {name: interval_of(entry.get("interval")) for name, entry in rho.items()}
        return cls(
            law=law_of(document),
            parameters=dict(document["parameters"]),
            rho={name: entry["value"] for name, entry in rho.items()},
            rho_interval={name: ends for name, ends in intervals.items() if ends is not None},
        )

    def with_predicted(self, predictions: Iterable[PredictionRow]) -> FittedLaw:
        """The same law, with predicted multipliers for representations that the fit has not seen."""
        predicted = {row.representation: row.rho for row in predictions if row.rho is not None}
        return replace(self, rho={**predicted, **self.rho} if self.rho else {})

    def multiplier(self, representation: str) -> float | None:
        """rho of a representation: 1 for dense, and under a law without rho; None when no run had it."""
        if representation == "dense" or not self.rho:
            return 1.0
        return self.rho.get(representation)

    def loss(self, representation: str, params: float, tokens: float) -> float | None:
        """The law's loss in nats per token, or None for a representation that the fit has not seen."""
        rho = self.multiplier(representation)
        if rho is None:
            return None
        return float(self.law.loss(self.parameters, params, tokens, rho))

    def loss_of(self, run: RunRow) -> float | None:
        """The law's loss at a run's N, D and representation."""
        return self.loss(run.representation, run.params, run.tokens)


def law_of(document: Mapping[str, Any]) -> Law:
    """The law of a fit's document, a shipped one or one that the document declares.

    Raises RequestError for a name that this version does not know.
    """
    if document.get("declaration"):
        return law_from_document(document["declaration"], str(document["law"]))
    return find_law(document["law"], document.get("conventions"))


def interval_of(ends: Sequence[float | None] | None) -> Interval | None:
    """An interval of a JSON document; an end that is null reaches to infinity."""
    if ends is None:
        return None
    low, high = ends
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))
