"""Composition of multipliers of one fit: rho(R1 then R2) from rho(R1) and rho(R2), by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import RequestError
from .bootstrap import interval
from .composition.settled import PRODUCT, Residual, Settled
from .multiplier import Multiplier
from .runs import Array

PUBLISHED_RESIDUALS = PRODUCT.residuals


@dataclass(frozen=True)
class Composition:
    """A composed multiplier, with the residuals its rule is known to have; the interval omits these."""

    multiplier: Multiplier
    residuals: tuple[Residual, ...] = PUBLISHED_RESIDUALS
    rule: Settled = PRODUCT

    @property
    def published_residual(self) -> float:
        """The most the rule was off by in published tables of rho; 0 when nothing was composed."""
        return max((residual.largest for residual in self.residuals), default=0.0)

    def to_document(self) -> dict[str, Any]:
        """The multiplier as plain JSON, with the rule and its published residuals beside it."""
        if not self.residuals:
            return self.multiplier.to_document() | {"composition": None}
        parts = {"parts": list(self.multiplier.composed_of)}
        return self.multiplier.to_document() | {"composition": self.rule.to_document() | parts}


def compose(
    multipliers: Sequence[Multiplier], name: str = "", rule: Settled = PRODUCT, families: Sequence[str] = ()
) -> Composition:
    """The composite of multipliers of one fit, with the interval of their joint bootstrap draws.

    rule: how, by default by the product; families: "sparse" or "scalar" for each, where the rule asks.
    Raises RequestError for multipliers of different fits: rho depends on the law, the exponents, the unit of
    N and the data it was fitted with, and a composite across fits has no meaning.
    """
    _check(multipliers, families)
    first = multipliers[0]
    if len(multipliers) == 1:
        return Composition(first, ())
    value = float(rule.combine(np.array([m.value for m in multipliers]), families))
    draws = _joint(multipliers, rule, families)
    composite = replace(
        first,
        name=name or " x ".join(m.name for m in multipliers),
        value=value,
        interval=interval(draws) if draws.size else None,
        standard_error=float(draws.std(ddof=1)) if draws.size else None,
        covariance={"rho": float(draws.var(ddof=1))} if draws.size else None,
        draws=draws,
        composed_of=tuple(m.name for m in multipliers),
        note=f"{rule.rule.name} rule",
    )
    return Composition(composite, rule.residuals, rule)


def _check(multipliers: Sequence[Multiplier], families: Sequence[str]) -> None:
    if not multipliers:
        raise RequestError("no multiplier to compose", advice="name at least one representation")
    first = multipliers[0]
    for other in multipliers[1:]:
        if other.origin != first.origin:
            raise RequestError(
                f"{first.name!r} and {other.name!r} come from different fits, so their multipliers do not"
                f" compose: {first.name!r} from the {first.origin}; {other.name!r} from the {other.origin}",
                advice="refit jointly: fit one law to the runs of both together, or take both from the same"
                " published fit",
            )
    if families and len(families) != len(multipliers):
        raise RequestError(
            f"{len(families)} families for {len(multipliers)} multipliers", advice="give one for each"
        )


def _joint(multipliers: Sequence[Multiplier], rule: Settled, families: Sequence[str]) -> Array:
    """The composite draw by draw; empty when any of the multipliers has no draws."""
    if any(not m.draws.size for m in multipliers):
        return np.empty(0)
    return rule.combine(np.stack([m.draws for m in multipliers]), families)
