"""Non-negative least squares for many small problems at once."""

from __future__ import annotations

import numpy as np

from .runs import Array


def nonnegative(design: Array, weights: Array, wanted: Array) -> Array:
    """argmin over c >= 0 of sum weights (design c - wanted)^2, for every cell, [cells, coefficients].

    design: [cells, coefficients, runs]; weights and wanted: [cells, runs]. Solved for all cells at once
    with the negative coefficients set to zero until none is left. The few cells where that is not the
    optimum (a coefficient at zero would rather be positive) are solved one by one.
    """
    if not design.shape[1]:
        return np.zeros((len(design), 0))
    weighted = design * weights[:, None, :]
    normal, target = weighted @ np.swapaxes(design, 1, 2), (weighted @ wanted[:, :, None])[:, :, 0]
    diagonal = np.arange(normal.shape[1])
    normal[:, diagonal, diagonal] += 1e-13 * normal[:, diagonal, diagonal].max(axis=1)[:, None]
    free = np.ones_like(target, dtype=bool)
    found = np.linalg.solve(normal, target[..., None])[..., 0]
    for _ in range(3):
        negative = (found < 0).any(axis=1)
        if not negative.any():
            break
        free[negative] &= found[negative] >= 0
        matrix = normal[negative] * (free[negative, :, None] & free[negative, None, :])
        matrix[:, diagonal, diagonal] += ~free[negative]
        found[negative] = np.linalg.solve(matrix, np.where(free, target, 0.0)[negative][..., None])[..., 0]
    slope = (normal @ found[..., None])[..., 0] - target
    wrong = (found < 0).any(axis=1) | (~free & (slope < -1e-9 * np.abs(target))).any(axis=1)
    if wrong.any():
        from scipy.optimize import nnls

        for cell in np.flatnonzero(wrong):
            root = np.sqrt(weights[cell])
            try:
                found[cell] = nnls((design[cell] * root).T, wanted[cell] * root)[0]
            except RuntimeError:  # out of iterations: a poor start in this cell, no wrong answer
                found[cell] = np.maximum(found[cell], 0.0)
    return np.asarray(found, dtype=np.float64)
