"""The representation law: rho as a function of Gaussian error, with two or three shape parameters.

A run has the column `gmse_weight` and, where inputs are represented too, `gmse_input`; its rho is the product
of the two. A GMSE of 0 is dense.
"""

from __future__ import annotations

from dataclasses import replace

from ..base import Column, Law, Parameter
from .chinchilla import ALPHA, BETA, A, B, E

SLOPE = Parameter("F", 0.02, 5.0, "slope of rho per effective bit")
CURVATURE = Parameter("C", 0.1, 6.0, "curvature of rho where the error is near 1")
CEILING = Parameter("L", 0.2, 1.5, "rho that a representation tends to as its error vanishes")
_WEIGHT = Column(
    "gmse_weight", None, "mean squared error on Gaussian data of what weights are stored in", 0.0, 1.0
)
_INPUT = Column("gmse_input", 0.0, "the same for inputs", 0.0, 1.0)

REPRESENTATION = Law(
    name="representation",
    formula="L = E + A/(N*rho)^alpha + B/D^beta",
    source="Panferov et al., Unified Scaling Laws for Compressed Representations, arXiv 2506.01863, eq. 3",
    parameters=(E, A, ALPHA, B, BETA, SLOPE, CURVATURE),
    rho="capacity(gmse_weight, F, C)*capacity(gmse_input, F, C)",
    columns=(_WEIGHT, _INPUT),
)

REPRESENTATION_CEILING = replace(
    REPRESENTATION,
    name="representation-ceiling",
    parameters=(*REPRESENTATION.parameters, CEILING),
    rho="capacity(gmse_weight, F, C, L)*capacity(gmse_input, F, C, L)",
)

REPRESENTATION_FAMILIES = replace(
    REPRESENTATION,
    name="representation-families",
    parameters=(
        *REPRESENTATION.parameters[:5],
        replace(SLOPE, column="family_weight"),
        replace(CURVATURE, column="family_weight"),
        Parameter("F_input", 0.02, 5.0, "slope of rho per effective bit of inputs"),
        Parameter("C_input", 0.1, 6.0, "curvature of the rho of inputs"),
    ),
    rho="capacity(gmse_weight, F[family_weight], C[family_weight])*capacity(gmse_input, F_input, C_input)",
    columns=(_WEIGHT, _INPUT, Column("family_weight", "scalar", "family whose F and C weights have")),
)
