"""Scheduled fields of a model's projections, set for a step of its training."""

from __future__ import annotations

import torch
from torch import nn

from .projection import projections


def advance(model: nn.Module, step: int, steps: int) -> None:
    """Set every scheduled field of `model` for the 0-based `step` of a run of `steps`.

    To be called before the forward pass of the step; nothing happens to a model without schedules. After the
    last step, `advance(model, steps, steps)` leaves all fields as they are declared.
    """
    for projection in projections(model):
        if projection.program.schedules:
            values = projection.program.values(step, steps)
            projection.values.copy_(torch.tensor(values, dtype=torch.float64))
