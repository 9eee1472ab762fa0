"""Precision: effective parameters from bits of weights, inputs and attention caches; and rounding after
training.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from ..base import Column, Law, Parameter
from .chinchilla import ALPHA, BETA, A, B, E

_UNTOUCHED = 16.0  # bits of a tensor that is not quantised


def _bits(name: str, what: str) -> tuple[Parameter, Parameter, Column]:
    """Constants of one tensor, and the column of its bits."""
    return (
        Parameter(f"g_{name}", 0.3, 12.0, f"bits of {what} for one factor of e"),
        Parameter(f"n_{name}", -2.0, 4.0, f"offset of the exponent of {what}"),
        Column({"w": "weight", "a": "input", "kv": "kv"}[name] + "_bits", _UNTOUCHED, f"bits of {what}"),
    )


_W, _A, _KV = _bits("w", "weights"), _bits("a", "inputs"), _bits("kv", "keys and values")

PRECISION = Law(
    name="precision",
    formula="L = E + A/(N*rho)^alpha + B/D^beta",
    source="Kumar et al., Scaling Laws for Precision, arXiv 2411.04330, eq. 3 with the offsets of its fits",
    parameters=(E, A, ALPHA, B, BETA, *_W[:2], *_A[:2], *_KV[:2]),
    rho=("(1 - exp(n_w - weight_bits/g_w))*(1 - exp(n_a - input_bits/g_a))*(1 - exp(n_kv - kv_bits/g_kv))"),
    columns=(_W[2], _A[2], _KV[2]),
)

PRECISION_PTQ = replace(
    PRECISION,
    name="precision-ptq",
    formula=f"{PRECISION.formula} + C_T*D^g_D/N^g_N*exp(-post_bits/g_post)",
    parameters=(
        *PRECISION.parameters,
        Parameter("C_T", meaning="weight of the loss that rounding after training adds"),
        Parameter("g_D", 0.01, 2.0, "its exponent in D"),
        Parameter("g_N", 0.01, 2.0, "its exponent in N"),
        Parameter("g_post", 0.1, 6.0, "bits after training for one factor of e"),
    ),
    columns=(*PRECISION.columns, Column("post_bits", inf, "bits weights were rounded to after training")),
)
