"""The decoupled law: one free multiplier per representation."""

from __future__ import annotations

from ..base import FREE, Law
from .chinchilla import ALPHA, BETA, A, B, E

DECOUPLED = Law(
    name="decoupled",
    formula="L = E + A/(N*rho)^alpha + B/D^beta",
    source="Frantar et al., Compression Scaling Laws, arXiv 2502.16440; arXiv 2506.01863, Table 1",
    parameters=(E, A, ALPHA, B, BETA),
    rho=FREE,
)
