"""Quantisation-aware training as an error that is added, and grows with tokens and group size."""

from __future__ import annotations

from ..base import Column, Law, Parameter
from .chinchilla import ALPHA, BETA, A, B, E

QAT_ERROR = Law(
    name="qat-error",
    formula="L = E + A/N^alpha + B/D^beta + k[representation]*D^g_D*log2(group_size)^g_G/N^g_N",
    source="Chen et al., Scaling Law for Quantization-Aware Training, arXiv 2505.14302",
    parameters=(
        E,
        A,
        ALPHA,
        B,
        BETA,
        Parameter("k", meaning="weight of the error of a precision", column="representation", baseline=0.0),
        Parameter("g_D", 0.005, 1.5, "its exponent in D"),
        Parameter("g_G", 0.01, 3.0, "its exponent in the logarithm of the group size"),
        Parameter("g_N", 0.01, 1.5, "its exponent in N"),
    ),
    columns=(Column("group_size", 128.0, "weights that share a scale"),),
)
