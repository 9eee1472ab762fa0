"""The product rule: rho(R1 then R2) = rho(R1) rho(R2), within one fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from ..errors import RequestError
from .bootstrap import interval
from .multiplier import Multiplier
from .runs import Array


@dataclass(frozen=True)
class Residual:
    """The largest error of the product rule in a published table: what was composed, where, how far off."""

    kinds: str
    table: str
    largest: float


# Panferov et al., arXiv 2506.01863 v1: |measured - product of the margins|, largest entry of each table.
PUBLISHED_RESIDUALS = (
    Residual("weight sparsity x input sparsity", "Fig. 2b", 0.034),
    Residual("weight sparsity x quantised weights", "Fig. 7", 0.079),
    Residual("quantised weights x quantised inputs", "Fig. 6", 0.084),
    Residual("weight sparsity x absmax-quantised weights", "Fig. 9", 0.096),
)


@dataclass(frozen=True)
class Composition:
    """A product of multipliers, with the residuals the rule is known to have; the interval omits these."""

    multiplier: Multiplier
    residuals: tuple[Residual, ...] = PUBLISHED_RESIDUALS

    @property
    def published_residual(self) -> float:
        """The most the product rule was off by in published tables of rho; 0 when nothing was composed."""
        return max((residual.largest for residual in self.residuals), default=0.0)

    def to_document(self) -> dict[str, Any]:
        """The multiplier as plain JSON, with the rule and its published residuals beside it."""
        if not self.residuals:
            return self.multiplier.to_document() | {"composition": None}
        return self.multiplier.to_document() | {
            "composition": {
                "rule": "product",
                "parts": list(self.multiplier.composed_of),
                "published_residual": self.published_residual,
                "published_residuals": {f"{r.kinds} ({r.table})": r.largest for r in self.residuals},
                "source": "arXiv 2506.01863 v1, tables of Fig. 2b, 6, 7, 9; not part of rho_interval",
            }
        }


def compose(multipliers: Sequence[Multiplier], name: str = "") -> Composition:
    """The product of multipliers of one fit, with the interval of their joint bootstrap draws.

    Raises RequestError for multipliers of different fits: rho depends on the law, the exponents, the unit of
    N and the data it was fitted with, and a product across fits has no meaning.
    """
    if not multipliers:
        raise RequestError("no multiplier to compose", advice="name at least one representation")
    first = multipliers[0]
    for other in multipliers[1:]:
        if other.origin != first.origin:
            raise RequestError(
                f"{first.name!r} and {other.name!r} come from different fits, so their multipliers do not"
                f" compose: {first.name!r} from the {first.origin}; {other.name!r} from the {other.origin}",
                advice="fit one law to the runs of both together, or take both from the same published fit",
            )
    if len(multipliers) == 1:
        return Composition(first, ())
    value = float(np.prod([m.value for m in multipliers]))
    draws = _joint(multipliers)
    product = replace(
        first,
        name=name or " x ".join(m.name for m in multipliers),
        value=value,
        interval=interval(draws) if draws.size else None,
        standard_error=float(draws.std(ddof=1)) if draws.size else None,
        covariance={"rho": float(draws.var(ddof=1))} if draws.size else None,
        draws=draws,
        composed_of=tuple(m.name for m in multipliers),
        note="product rule",
    )
    return Composition(product)


def _joint(multipliers: Sequence[Multiplier]) -> Array:
    """Draw-by-draw product; empty when any of the multipliers has no draws."""
    if any(not m.draws.size for m in multipliers):
        return np.empty(0)
    return np.asarray(reduce(np.multiply, [m.draws for m in multipliers]))
