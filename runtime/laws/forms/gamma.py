"""The outer-exponent law: one exponent around the terms of size and data, multipliers on both."""

from __future__ import annotations

from ..base import FREE, Law, Parameter
from .chinchilla import A, B, E

GAMMA = Law(
    name="gamma",
    formula="L = (A/(N*rho)^alpha + B/(D*rho_D)^beta)^gamma + E",
    source="Castro et al., Quartet: Native FP4 Training Can Be Optimal, arXiv 2505.14669, section 3",
    parameters=(
        E,
        A,
        Parameter("alpha", 0.02, 4.0, "exponent of the size term"),
        B,
        Parameter("beta", 0.02, 4.0, "exponent of the data term"),
        Parameter("gamma", 0.05, 2.0, "exponent around both"),
    ),
    rho=FREE,
    rho_data=FREE,
)
