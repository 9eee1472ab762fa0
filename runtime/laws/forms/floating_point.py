"""Floating-point training: an error that exponent bits, mantissa bits and blocks of scales decide."""

from __future__ import annotations

from math import inf

from ..base import Column, Law, Parameter
from .chinchilla import ALPHA, BETA, A, B, E

FLOATING_POINT = Law(
    name="floating-point",
    formula=(
        "L = E + A/N^alpha + B/D^beta"
        " + h*D^beta/N^alpha*log2(block_size)/((exponent_bits + 0.5)^delta*(mantissa_bits + 0.5)^nu)"
    ),
    source="Sun et al., Scaling Laws for Floating-Point Quantization Training, arXiv 2501.02423",
    parameters=(
        E,
        A,
        ALPHA,
        B,
        BETA,
        Parameter("h", meaning="weight of the error, 1/gamma of the paper"),
        Parameter("delta", 0.2, 8.0, "power of the exponent's bits"),
        Parameter("nu", 0.2, 8.0, "power of the mantissa's bits"),
    ),
    columns=(
        Column("exponent_bits", None, "bits of the exponent", dense=inf),
        Column("mantissa_bits", None, "bits of the mantissa", dense=inf),
        Column("block_size", None, "numbers that share a scale", dense=1.0),
    ),
    derived={"gamma": "1/h"},
)
