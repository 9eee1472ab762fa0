"""What a spec is worth before any training: stored bits, Gaussian error, and rho by published fits."""

from __future__ import annotations

from typing import Any

from ..runtime.capacity import gmse
from ..runtime.representation import Representation
from .spec import Rule, Spec

REFERENCE_SHAPE = (4096, 4096)
"""Bits per weight are quoted for a matrix of this shape held in bfloat16 before."""


def summarise(spec: Spec) -> dict[str, Any]:
    """One row of `rhoc specs ls`: name, summary, bits and Gaussian error of the first rule's weights."""
    weights = first_rule(spec).weight_representation if spec.rules else Representation()
    error = gmse(weights)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "bits_per_weight": weights.bits_per_weight(REFERENCE_SHAPE),
        "gmse": error.value,
        "gmse_standard_error": error.standard_error,
        "gaussian_bits": error.gaussian_bits,
        "digest": spec.digest,
    }


def capacities(spec: Spec) -> list[dict[str, Any]]:
    """Rows of `rhoc capacity`: one for each rule and each tensor that it represents."""
    from .query import published_multiplier

    rows = []
    for position, rule in enumerate(spec.rules):
        for tensor in ("weights", "input_activations"):
            representation = rule.weight_representation if tensor == "weights" else rule.input_representation
            if representation.is_dense and not (tensor == "weights" and rule.input_representation.is_dense):
                continue
            error = gmse(representation)
            bits = representation.bits_per_weight(REFERENCE_SHAPE)
            label = tensor if len(spec.rules) == 1 else f"rule {position + 1} {tensor}"
            rows.append(
                {
                    "spec": spec.name,
                    "tensor": label,
                    "representation": str(representation),
                    "gmse": error.value,
                    "gmse_standard_error": error.standard_error,
                    "gmse_method": error.method,
                    "gaussian_bits": error.gaussian_bits,
                    "bits_per_weight": bits,
                    "shannon_efficiency": error.gaussian_bits / bits if error.value > 0 else None,
                    **published_multiplier(spec, rule, tensor),
                }
            )
    return rows


def first_rule(spec: Spec) -> Rule:
    """The rule that most weights follow: the first."""
    return spec.rules[0]
