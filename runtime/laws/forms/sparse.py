"""Sparse training: the size term's weight as a function of sparsity, with N the non-zero parameters."""

from __future__ import annotations

from ..base import Column, Law, Parameter
from .chinchilla import ALPHA, BETA, B, E

SPARSE = Law(
    name="sparse",
    formula="L = (a*(1 - sparsity)^b + c)/N^alpha + B/D^beta + E",
    source="Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, arXiv 2309.08520, eq. 1",
    parameters=(
        Parameter("a", meaning="part of the size term that sparsity shrinks"),
        Parameter("b", 0.02, 8.0, "exponent of the density"),
        Parameter("c", meaning="part of the size term that stays"),
        ALPHA,
        B,
        BETA,
        E,
    ),
    columns=(Column("sparsity", 0.0, "fraction of weights that are zero", 0.0, 1.0),),
    derived={"a_D": "B^(1/beta)"},
    unit_of_params="non-zero parameters without embeddings",
)
