"""The profile map: the best objective at every cell of a grid over the outer parameters.

At fixed outer parameters the coefficients solve a non-negative least squares problem; a few reweightings turn
it into the Huber objective of log residuals. The map finds the basin of the global optimum without random
starts, and stays with the fit as its certificate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .objective import Objective, by_coefficient, huber
from .runs import Array

_PASSES = 6  # reweightings per cell
_CHUNK = 2_000_000  # numbers in a work array


@dataclass(frozen=True)
class ProfileMap:
    """Best objective per cell of the grid `axes` (one array of values per outer parameter).

    objective: one axis per outer parameter; points: the best point found in each cell, [cells, size].
    """

    axes: tuple[Array, ...]
    objective: Array
    points: Array

    def starts(self, basins: int = 12, spread: int = 6) -> Array:
        """Points to polish: cells no higher than any neighbour, and cells from all over the ranking.

        The spread starts are there to be wrong: if one of them ends lower, the map was too coarse.
        """
        from scipy.ndimage import minimum_filter

        lowest = self.objective <= minimum_filter(self.objective, size=3, mode="nearest")
        order = np.argsort(self.objective.ravel(), kind="stable")
        local = order[lowest.ravel()[order]][:basins]
        others = order[np.linspace(0, len(order) // 2, spread, dtype=np.intp)]
        return np.asarray(self.points[np.concatenate([local, others])])

    def plane(self) -> Array:
        """The map over the first two axes, at the best of the others."""
        return np.asarray(self.objective.reshape(*self.objective.shape[:2], -1).min(axis=2))


def profile_map(objective: Objective) -> ProfileMap:
    """The map of an objective with every run counted once."""
    axes = tuple(axis.values for axis in objective.terms.axes)
    outer = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    chunk = max(1, _CHUNK // (len(objective.loss) * len(objective.terms.coefficients)))
    solved = [_best_coefficients(objective, outer[i : i + chunk]) for i in range(0, len(outer), chunk)]
    points = np.concatenate([np.concatenate([c for c, _ in solved]), outer], axis=1)
    values = np.concatenate([value for _, value in solved])
    return ProfileMap(axes, values.reshape([len(axis) for axis in axes]), points)


def _best_coefficients(objective: Objective, outer: Array) -> tuple[Array, Array]:
    """Non-negative coefficients for rows of outer parameters, [cells, coefficients], and their objective."""
    terms, loss, delta = objective.terms, objective.loss, objective.delta
    design = by_coefficient(np.exp(terms.basis(outer).value), terms.index, len(terms.coefficients))
    weights = np.broadcast_to(loss**-2.0, design.shape[:2])
    best, best_value = np.zeros((len(outer), design.shape[2])), np.full(len(outer), np.inf)
    for _ in range(_PASSES):
        found = _nonnegative(design, weights, loss)
        predicted = np.maximum((design @ found[:, :, None])[:, :, 0], 1e-3 * loss)
        residual = np.log(predicted / loss)
        value = huber(residual, delta).sum(axis=1)
        better = value < best_value
        best[better], best_value[better] = found[better], value[better]
        # at a fixed point of these weights least squares has the Huber equations of log residuals
        gap = predicted - loss
        exact = np.abs(gap) <= 1e-9 * loss
        pull = np.where(exact, 1 / loss, np.clip(residual, -delta, delta) / np.where(exact, 1.0, gap))
        weights = pull / predicted
    return best, best_value


def _nonnegative(design: Array, weights: Array, loss: Array) -> Array:
    """argmin over c >= 0 of sum weights (design c - loss)^2, for every cell, [cells, coefficients].

    Solved for all cells at once with the negative coefficients set to zero until none is left. The few cells
    where that is not the optimum (a coefficient at zero would rather be positive) are solved one by one.
    """
    weighted = np.swapaxes(design * weights[:, :, None], 1, 2)
    normal, target = weighted @ design, (weighted @ loss[:, None])[:, :, 0]
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
                found[cell] = nnls(design[cell] * root[:, None], loss * root)[0]
            except RuntimeError:  # out of iterations: a poor start in this cell, no wrong answer
                found[cell] = np.maximum(found[cell], 0.0)
    return np.asarray(found, dtype=np.float64)
