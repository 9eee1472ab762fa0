"""Representations with something that several weights of a model share: fitted once, to all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..runtime.representation import Representation
from ..runtime.stages import Palette
from .decide import Decision


def shared(
    decisions: tuple[Decision, ...], values: Mapping[int, torch.Tensor] | None = None
) -> tuple[Decision, ...]:
    """The decisions with codebooks, values and factors that weights share fitted to all of them.

    Weights with equal representations share, all of the model or those of one group. On the meta device there
    are no numbers to fit to, and the representation stays as it was written. `values`: only weights that have
    one there, by identity of the original's, and these instead of the original's.
    """
    tensors: dict[tuple[Representation, str], list[torch.Tensor]] = {}
    for decision in decisions:
        tensor = decision.held.tensor if values is None else values.get(id(decision.held.tensor))
        if tensor is not None and _shares(decision.assignment.weight) and not tensor.is_meta:
            matrix = decision.assignment.arrangement.matrix(tensor.detach())
            tensors.setdefault(_key(decision), []).append(matrix)
    with torch.no_grad():
        fitted = {key: key[0].shared_over(found) for key, found in tensors.items()}
    return tuple(
        replace(d, assignment=replace(d.assignment, weight=fitted.get(_key(d), d.assignment.weight)))
        for d in decisions
    )


def led(decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """The decisions with one leader, who counts it, among all that share values of a palette."""
    groups: dict[tuple[Representation, str], list[str]] = {}
    for decision in decisions:
        if _has_palette(decision.assignment.weight):
            groups.setdefault(_key(decision), []).append(decision.held.path)
    found = []
    for decision in decisions:
        first, *others = groups.get(_key(decision), [decision.held.path])
        if others:
            leads = decision.held.path == first
            counted = "" if leads else f", counted with {first}"
            said = f"shares its values with {len(others)} other weights{counted}"
            decision = replace(decision, leads=leads, reason="; ".join(filter(None, (decision.reason, said))))
        found.append(decision)
    return tuple(found)


def _has_palette(weight: Representation) -> bool:
    return any(isinstance(stage, Palette) and stage.scope == "network" for stage in weight.all_stages())


def _key(decision: Decision) -> tuple[Representation, str]:
    return decision.assignment.weight, decision.group


def _shares(weight: Representation) -> bool:
    return any(getattr(stage, "scope", None) in ("network", "siblings") for stage in weight.all_stages())
