"""Representations with something that all weights of a model share: fitted once, to all of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..runtime.representation import Representation
from .decide import Decision


def shared(decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """The decisions with shared codebooks in place of codebooks of scope `network`.

    Weights with equal representations share. On the meta device there are no numbers to fit to, and the
    representation stays as it was written.
    """
    tensors: dict[Representation, list[torch.Tensor]] = {}
    for decision in decisions:
        if _shares(decision.assignment.weight) and not decision.held.tensor.is_meta:
            tensors.setdefault(decision.assignment.weight, []).append(decision.held.tensor.detach())
    with torch.no_grad():
        fitted = {weight: weight.shared_over(found) for weight, found in tensors.items()}
    return tuple(
        replace(
            d, assignment=replace(d.assignment, weight=fitted.get(d.assignment.weight, d.assignment.weight))
        )
        for d in decisions
    )


def _shares(weight: Representation) -> bool:
    return any(getattr(stage, "scope", None) == "network" for stage in weight.all_stages())
