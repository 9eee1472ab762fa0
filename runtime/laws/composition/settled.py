"""A rule of composition with its constants, and how far off it was where they were not learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..runs import Array
from .rules import Rule, find_rule


@dataclass(frozen=True)
class Residual:
    """The largest error of a rule in a table of measured rho: what was composed, where, how far off."""

    kinds: str
    table: str
    largest: float


@dataclass(frozen=True)
class Settled:
    """A rule ready to compose.

    constants: by name, with the tables they were learned from in `source`; residuals: for each table the
    largest error of the rule with constants from the other tables; where it has none, its error.
    """

    rule: Rule
    source: str
    constants: Mapping[str, float] = field(default_factory=dict)
    residuals: tuple[Residual, ...] = ()

    @property
    def residual(self) -> float:
        """The largest of the residuals."""
        return max((residual.largest for residual in self.residuals), default=0.0)

    def combine(self, parts: Array, families: Sequence[str] = ()) -> Array:
        """rho of the composite of multipliers `[parts, ...]`; as many families as parts where the rule asks.

        Raises RequestError when the rule needs families and none are given.
        """
        constants = {name: np.asarray(value) for name, value in self.constants.items()}
        return self.rule.combine(parts, self.rule.strength(constants, families))

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "rule": self.rule.name,
            "formula": self.rule.generator.formula,
            "constants": dict(self.constants),
            "published_residual": self.residual,
            "published_residuals": {f"{r.kinds} ({r.table})": r.largest for r in self.residuals},
            "source": self.source,
        }


# Panferov et al., arXiv 2506.01863 v1: |measured - product of the margins|, largest entry of each table.
PRODUCT = Settled(
    find_rule("product"),
    "arXiv 2506.01863 v1, tables of Fig. 2b, 6, 7, 9; not part of rho_interval",
    {},
    (
        Residual("weight sparsity x input sparsity", "Fig. 2b", 0.034),
        Residual("weight sparsity x quantised weights", "Fig. 7", 0.079),
        Residual("quantised weights x quantised inputs", "Fig. 6", 0.084),
        Residual("weight sparsity x absmax-quantised weights", "Fig. 9", 0.096),
    ),
)
