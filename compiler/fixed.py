"""What training made of weights whose numbers become values of a palette: those values, and no others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..runtime.estimators.fix_values import FIXED, fix_values_of
from ..runtime.uncertain import UncertainProject
from .decide import Decision
from .sharing import shared


def fixed(
    decisions: tuple[Decision, ...], values: dict[int, Tensor], state: Mapping[str, Tensor] | None
) -> tuple[Decision, ...]:
    """The decisions with palettes of the numbers that a trained form has in eval(), which `values` are then.

    `values` are weights by identity of the original's; `state` is that of the trained form, None for none.
    """
    found = {}
    for decision in decisions if state is not None else ():
        key, assignment = id(decision.held.tensor), decision.assignment
        if fix_values_of(assignment.weight_estimators) is None or assignment.weight.is_dense:
            continue
        assert state is not None
        projection = assignment.project_weight("").eval()
        assert isinstance(projection, UncertainProject)
        mask = state[f"{decision.held.path}_{FIXED}"]
        found[key] = values[key] = projection.settled(values[key].detach(), mask)
    if not found:
        return decisions
    settled = shared(decisions, found)
    return tuple(
        new if id(old.held.tensor) in found else old for old, new in zip(decisions, settled, strict=True)
    )
