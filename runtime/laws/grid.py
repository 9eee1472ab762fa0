"""The profile map: the best objective at every cell of a grid over the outer parameters.

At fixed outer parameters the coefficients solve a non-negative least squares problem; a few reweightings turn
it into the Huber objective. The map finds the basin of the global optimum without random starts, and stays
with the fit as its certificate. The first two outer parameters, the exponents, are gridded; further ones are
gridded where that is cheap and sampled by a Sobol sequence where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from .base import Parameter
from .nonnegative import nonnegative
from .objective import TINY, Objective, Residual, huber
from .runs import Array

_PASSES = 6  # reweightings per cell
_LEAST_SHARE = 1e-3  # of the wanted sum: below it a run would have no weight, or all of it
_CHUNK = 100_000  # numbers in a work array, so that it stays in cache
_FINE, _COARSE, _CELLS = 28, 12, 9000  # points per exponent alone, and beside other parameters; most cells
_POINTS = 7  # per further parameter, where they are gridded
_FLOORS = np.array([0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9])  # loss outside a power, over the least loss


@dataclass(frozen=True)
class ProfileMap:
    """Best objective per cell, [first axis, second axis, others], and where in each cell it is.

    axes: values of the first two outer parameters (one value where the law has fewer); points: [cells, size].
    """

    axes: tuple[Array, Array]
    objective: Array
    points: Array

    def starts(self, basins: int = 12, spread: int = 6) -> Array:
        """Points to polish: cells no higher than any neighbour, and cells from all over the ranking.

        The spread starts are there to be wrong: if one of them ends lower, the map was too coarse.
        """
        from scipy.ndimage import minimum_filter

        flat = self.objective.reshape(*self.objective.shape[:2], -1)
        best = np.argmin(flat, axis=2)
        plane = flat.min(axis=2)
        lowest = plane <= minimum_filter(plane, size=3, mode="nearest")
        cells = np.ravel_multi_index((*np.indices(plane.shape), best), flat.shape)[lowest]
        order = np.argsort(flat.ravel(), kind="stable")
        local = cells[np.argsort(flat.ravel()[cells], kind="stable")][:basins]
        top = order[: basins * (flat.shape[2] > 1)]  # beside the plane's minima: the best of all cells
        others = order[np.linspace(0, len(order) // 2, spread, dtype=np.intp)]
        return np.asarray(self.points[np.unique(np.concatenate([local, top, others]))])

    @cached_property
    def plane(self) -> Array:
        """The map over the first two axes, at the best of the others."""
        return np.asarray(self.objective.min(axis=2))


def profile_map(objective: Objective) -> ProfileMap:
    """The map of an objective with every run counted once."""
    outer = objective.terms.outer
    fine = _FINE if len(outer) <= 2 and not objective.terms.wrapped else _COARSE
    pair = [_spaced(p, fine) for p in outer[:2]]
    others = _others(
        outer[2:], max(1, _CELLS // (fine * fine * (len(_FLOORS) if objective.terms.wrapped else 1)))
    )
    floors = _FLOORS if _has_floor(objective) else _FLOORS[:1]
    grid = np.stack(np.meshgrid(*pair, np.arange(len(others)), indexing="ij"), axis=-1).reshape(
        -1, len(pair) + 1
    )
    cells = np.concatenate([grid[:, :-1], others[grid[:, -1].astype(np.intp)]], axis=1)
    cells, floor = np.repeat(cells, len(floors), axis=0), np.tile(floors, len(cells))
    chunk = max(1, _CHUNK // (len(objective.loss) * len(objective.terms.coefficients)))
    solved = [
        _best_coefficients(objective, cells[i : i + chunk], floor[i : i + chunk])
        for i in range(0, len(cells), chunk)
    ]
    points = np.concatenate([np.concatenate([c for c, _ in solved]), cells], axis=1)
    values = np.concatenate([value for _, value in solved])
    axes = [*pair, *([np.ones(1)] * (2 - len(pair)))]
    return ProfileMap((axes[0], axes[1]), values.reshape(len(axes[0]), len(axes[1]), -1), points)


def _spaced(parameter: Parameter, points: int) -> Array:
    """Values from the lower bound to the upper, evenly spaced in the logarithm where that exists."""
    if parameter.low > 0:
        return np.geomspace(parameter.low, parameter.high, points)
    return np.linspace(parameter.low, parameter.high, points)


def _others(parameters: tuple[Parameter, ...], most: int) -> Array:
    """Combinations of the further parameters, [combinations, parameters]: a grid, or `most` Sobol points."""
    if not parameters:
        return np.zeros((1, 0))
    if prod([_POINTS] * len(parameters)) <= most:
        values = [_spaced(p, _POINTS) for p in parameters]
        return np.stack(np.meshgrid(*values, indexing="ij"), axis=-1).reshape(-1, len(parameters))
    from scipy.stats import qmc

    unit = qmc.Sobol(len(parameters), scramble=False).random_base2(max(4, int(np.log2(most))))
    columns = []
    for i, p in enumerate(parameters):
        even = p.low + unit[:, i] * (p.high - p.low)
        columns.append(p.low * (p.high / p.low) ** unit[:, i] if p.low > 0 else even)
    return np.stack(columns, axis=1)


def _has_floor(objective: Objective) -> bool:
    """Whether something stands outside a power, so that the sum under it is not linear in the loss."""
    return objective.terms.wrapped and bool((~objective.terms.inside).any())


def _best_coefficients(objective: Objective, outer: Array, floor: Array) -> tuple[Array, Array]:
    """Non-negative coefficients for rows of outer parameters, [cells, coefficients], and their objective.

    floor: under a power, what part of the least loss stands outside of it.
    """
    terms, loss, delta = objective.terms, objective.loss, objective.delta
    count = len(terms.coefficients)
    design = terms.design(outer)
    below = floor[:, None] * loss.min() if terms.wrapped else np.zeros((len(outer), 1))
    power = terms.power(outer).value if terms.wrapped else np.ones((len(outer), 1))
    unit = terms.loss_scale if terms.wrapped else 1.0
    target = (np.maximum(loss - below, 1e-6 * loss) / unit) ** (1 / power)
    fixed = terms.fixed
    constant = design[:, fixed].sum(axis=1)
    weights = _first_weights(objective, target, power, loss - below) * objective.counts * np.ones_like(target)
    best, best_value = np.zeros((len(outer), count)), np.full(len(outer), np.inf)
    for _ in range(_PASSES):
        found = np.ones((len(outer), count))
        found[:, ~fixed] = nonnegative(design[:, ~fixed], weights, target - constant)
        total = np.maximum((found[:, None] @ design)[:, 0], TINY)
        residual = _residual(objective, below + unit * total**power)
        value = (objective.counts * huber(residual, delta)).sum(axis=1)
        better = value < best_value
        best[better], best_value[better] = found[better], value[better]
        inner = np.maximum(total, _LEAST_SHARE * target)
        weights = objective.counts * _weights(objective, below, inner, target, (unit, power))
    if _has_floor(objective):
        _set_outside(objective, best, below[:, 0])
    return best, best_value


def _first_weights(objective: Objective, target: Array, power: Array, above: Array) -> Array:
    """(d residual / d sum)^2 at the measured losses."""
    slope = power * np.maximum(above, 1e-12) / target
    return np.asarray(slope**2 / (objective.loss**2 if objective.residuals is Residual.LOG else 1.0))


def _weights(
    objective: Objective,
    below: Array,
    inner: Array,
    target: Array,
    wrap: tuple[float, Array],
) -> Array:
    """Weights under which least squares of the sum has, at its fixed point, the Huber equations."""
    unit, power = wrap
    predicted = below + unit * inner**power
    residual = _residual(objective, predicted)
    slope = unit * power * inner ** (power - 1)
    slope = slope / predicted if objective.residuals is Residual.LOG else slope
    gap = inner - target
    exact = np.abs(gap) <= 1e-9 * target
    pull = np.clip(residual, -objective.delta, objective.delta)
    return np.asarray(slope * np.where(exact, np.abs(slope), np.abs(pull / np.where(exact, 1.0, gap))))


def _residual(objective: Objective, predicted: Array) -> Array:
    if objective.residuals is Residual.LINEAR:
        return np.asarray(predicted - objective.loss)
    return np.asarray(np.log(predicted / objective.loss))


def _set_outside(objective: Objective, points: Array, below: Array) -> None:
    """Give the first coefficient outside the power what was taken to stand there."""
    terms = objective.terms
    outside = int(np.flatnonzero(~terms.inside)[0])
    points[:, int(terms.index[0, outside])] = below
