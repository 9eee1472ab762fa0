"""Kaplan: no loss that size and data together could not remove."""

from __future__ import annotations

from ..base import Law, Parameter
from .chinchilla import BETA, B

KAPLAN = Law(
    name="kaplan",
    formula="L = (A/N^(alpha/beta) + B/D)^beta",
    source="Kaplan et al., Scaling Laws for Neural Language Models, arXiv 2001.08361, eq. 1.5",
    parameters=(
        Parameter("A", meaning="N_c^(alpha/beta)"),
        Parameter("alpha", 0.01, 1.0, "exponent of the loss in N"),
        B,
        BETA,
    ),
    derived={"N_c": "A^(beta/alpha)", "D_c": "B"},
)
