"""Repeated data: what a token is worth falls with every epoch."""

from __future__ import annotations

from ..base import Column, Law, Parameter
from .chinchilla import ALPHA, BETA, A, B, E

_DATA = "(min(D, unique_tokens)*(1 + R_D*(1 - exp((1 - D/min(D, unique_tokens))/R_D))))"

DATA_CONSTRAINED = Law(
    name="data-constrained",
    formula=f"L = E + A/N^alpha + B/{_DATA}^beta",
    source="Muennighoff et al., Scaling Data-Constrained Language Models, arXiv 2305.16264, eq. 5, 6 (D)",
    parameters=(
        E,
        A,
        ALPHA,
        B,
        BETA,
        Parameter("R_D", 0.1, 500.0, "epochs after which repeating is worth 1/e"),
    ),
    columns=(Column("unique_tokens", 1e30, "tokens before any was repeated"),),
)
