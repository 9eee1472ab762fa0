"""Everything that a law reports of a point: parameters and multipliers by name, with their derivatives."""

from __future__ import annotations

import numpy as np

from ..objective import Objective
from ..runs import Array

_STEP = 1e-5  # relative, of central differences


def rho_name(representation: str) -> str:
    """The name of a multiplier among parameters."""
    return f"rho[{representation}]"


def quantities(objective: Objective, points: Array) -> dict[str, Array]:
    """Values by name at points [batch, size], each [batch]."""
    count = len(objective.terms.coefficients)
    reading = objective.terms.read(points[:, :count], points[:, count:])
    return {**reading.parameters, **{rho_name(name): value for name, value in reading.rho.items()}}


def slopes(objective: Objective, points: Array) -> dict[str, Array]:
    """Derivatives of each with respect to the point, [batch, size], by central differences."""
    batch, size = points.shape
    step = _STEP * np.maximum(np.abs(points), 1e-3)
    moves = step[:, :, None] * np.eye(size)
    ahead = quantities(objective, (points[:, None] + moves).reshape(-1, size))
    behind = quantities(objective, (points[:, None] - moves).reshape(-1, size))
    return {name: (value - behind[name]).reshape(batch, size) / (2 * step) for name, value in ahead.items()}
