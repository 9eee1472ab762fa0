"""Representations with something that several weights of a model share: fitted once, to all of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..runtime.representation import Representation
from .decide import Decision


def shared(decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """The decisions with codebooks and factors that weights share fitted to all of them.

    Weights with equal representations share, all of the model or those of one group. On the meta device there
    are no numbers to fit to, and the representation stays as it was written.
    """
    tensors: dict[tuple[Representation, str], list[torch.Tensor]] = {}
    for decision in decisions:
        if _shares(decision.assignment.weight) and not decision.held.tensor.is_meta:
            matrix = decision.assignment.arrangement.matrix(decision.held.tensor.detach())
            tensors.setdefault(_key(decision), []).append(matrix)
    with torch.no_grad():
        fitted = {key: key[0].shared_over(found) for key, found in tensors.items()}
    return tuple(
        replace(d, assignment=replace(d.assignment, weight=fitted.get(_key(d), d.assignment.weight)))
        for d in decisions
    )


def _key(decision: Decision) -> tuple[Representation, str]:
    return decision.assignment.weight, decision.group


def _shares(weight: Representation) -> bool:
    return any(getattr(stage, "scope", None) in ("network", "siblings") for stage in weight.all_stages())
