"""What a spec is worth before any training: stored bits, Gaussian error, and rho by published fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime.capacity import GaussianError, error_on, monte_carlo
from ..runtime.distributions import NORMAL, Distribution
from ..runtime.errors import RequestError
from ..runtime.marchenko_pastur import REFERENCE_SHAPE
from ..runtime.representation import Representation
from ..runtime.stages import Quantize
from .gaussian_errors import gaussian_error
from .query import published_multiplier
from .spec import Rule, Spec


def summarise(spec: Spec, rule: Rule | None = None) -> dict[str, Any]:
    """One row of `rhoc specs ls`: what a rule (by default the first) makes of weights, by shipped and
    published values."""
    rule = rule or (first_rule(spec) if spec.rules else None)
    weights = rule.weight_representation if rule else Representation()
    inputs = rule.input_representation if rule else Representation()
    error = gaussian_error(weights, verify=False)
    bits = weights.bits_per_weight(REFERENCE_SHAPE)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "kind": kind_of(weights),
        "bits_per_weight": bits,
        "bits_per_input": inputs.bits_per_weight(REFERENCE_SHAPE),
        "gmse": error.value,
        "gmse_standard_error": error.standard_error,
        "gaussian_bits": error.gaussian_bits,
        "shannon_efficiency": _efficiency(error, bits),
        "rho": published_multiplier(spec, rule)["rho"],
        "digest": spec.digest,
    }


def capacities(
    spec: Spec, on: Distribution | Tensor | None = None, precision: float | None = None
) -> list[dict[str, Any]]:
    """Rows of `rhoc capacity`: one for each rule and each tensor that it represents.

    `on`: another distribution than the standard normal one, or a tensor, to take the error on; rho is then
    left out, since it follows from Gaussian error alone. Bits are those that the tensor is stored in; without
    one, those of a large matrix of Gaussian numbers. `precision`: estimate by Monte Carlo, to this relative
    standard error, what would otherwise be looked up or integrated.

    Raises:
        RequestError: a precision for the error on a tensor, or a tensor that a rule cannot encode.
    """
    if isinstance(on, Tensor) and precision is not None:
        advice = "leave the precision out, or name a distribution"
        raise RequestError("the error on a given tensor is exact", advice=advice)
    rows = []
    for position, rule in enumerate(spec.rules):
        for tensor in ("weights", "input_activations"):
            representation = rule.weight_representation if tensor == "weights" else rule.input_representation
            if representation.is_dense and not (tensor == "weights" and rule.input_representation.is_dense):
                continue
            label = tensor if len(spec.rules) == 1 else f"rule {position + 1} {tensor}"
            error, bits = _valued(representation, on, precision)
            rho = published_multiplier(spec, rule, tensor) if on is None else _NO_RHO
            rows.append(
                {
                    "spec": spec.name,
                    "tensor": label,
                    "representation": str(representation),
                    "gmse": error.value,
                    "gmse_standard_error": error.standard_error,
                    "gmse_method": error.method,
                    "gmse_at_unit_sigma": error.at_unit,
                    "gaussian_bits": error.gaussian_bits,
                    "bits_per_weight": bits,
                    "shannon_efficiency": _efficiency(error, bits),
                    **rho,
                }
            )
    return rows


_NO_RHO = {
    "rho": None,
    "rho_interval": None,
    "rho_source": None,
    "rho_reason": "rho follows from the error on Gaussian numbers",
}


def _valued(
    representation: Representation, on: Distribution | Tensor | None, precision: float | None
) -> tuple[GaussianError, float]:
    """Error and stored bits."""
    if isinstance(on, Tensor):
        return _on_tensor(representation, on)
    return _on_random(representation, on, precision)


def _on_random(
    representation: Representation, on: Distribution | None, precision: float | None
) -> tuple[GaussianError, float]:
    """Error on random numbers, and bits of a large matrix of Gaussian ones."""
    bits = representation.bits_per_weight(REFERENCE_SHAPE)
    if on is None and precision is None:
        return gaussian_error(representation), bits
    return monte_carlo(representation, precision=precision, distribution=on or NORMAL), bits


def _on_tensor(representation: Representation, x: Tensor) -> tuple[GaussianError, float]:
    """Error on one tensor, and the bits that it is stored in."""
    with torch.no_grad():
        stored = representation.pack(representation.encode(x))
        error = GaussianError(error_on(representation, x), 0.0, "this tensor")
    return error, 8 * sum(field.nbytes for field in stored.values()) / max(x.numel(), 1)


def _efficiency(error: GaussianError, bits: float) -> float | None:
    """Gaussian bits as a share of the bits that are stored: Shannon's limit is 1. None for no error."""
    return error.gaussian_bits / bits if error.value > 0 else None


_KINDS = {
    "entropy": "entropy-coded", "sum": "sum", "product": "low rank", "split": "split", "trellis": "trellis",
    "codebook": "codebook", "sparsify": "sparse",
}  # fmt: skip


def kind_of(representation: Representation) -> str:
    """What a format is, in a word or two: that of its most particular stage."""
    stages = {stage.kind: stage for stage in representation.stages}
    for kind, word in _KINDS.items():
        if kind in stages:
            return word
    grid = next((stage for stage in representation.stages if isinstance(stage, Quantize)), None)
    return "dense" if grid is None else "integer" if grid.type == "int" else "float"


def first_rule(spec: Spec) -> Rule:
    """The rule that most weights follow: the first."""
    return spec.rules[0]
