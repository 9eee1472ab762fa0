"""What runs say of a law's parameters at an optimum, and what runs not yet trained would add.

The information of a run is the outer product of its residual's exact derivatives, over the variance of one
residual. It does not depend on the loss that will be measured, so that it is known before a run is trained
(Fedorov, Theory of Optimal Experiments, 1972).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..errors import RequestError
from .grid import profile_map
from .newton import descend
from .objective import Objective
from .runs import Array, Runs
from .terms import Terms

_SINGULAR = 1e-12  # eigenvalue, of a matrix with diagonal near 1, below which a direction is unknown
_STEP = 1e-6  # relative step of derivatives of what a solution reads as


@dataclass(frozen=True)
class Information:
    """Runs, and extra runs that have no loss yet, at one point.

    objective, point: over all of them, runs first; matrix: information of the runs, [size, size], in units of
    one run; rows: derivatives of the residuals of the extra runs, [extra, size]; variance: of the residual of
    one run, as the Huber fit sees it.
    """

    objective: Objective
    point: Array
    matrix: Array
    rows: Array
    variance: float

    @cached_property
    def scale(self) -> Array:
        """What every parameter is divided by, so that the matrix has a diagonal near 1, [size]."""
        most = np.square(self.rows).max(axis=0, initial=0.0)
        found = np.sqrt(np.diag(self.matrix) + most)
        return np.where(found > 0, found, 1.0)

    def inverse(self, chosen: Sequence[int] = ()) -> Array:
        """The inverse of the information of the runs and of the chosen extra ones, [size, size], scaled.

        Directions that no run says anything about have 1e12 in it.
        """
        scaled = self._scaled(chosen)
        return np.asarray(np.linalg.inv(scaled + _SINGULAR * np.eye(len(scaled))))

    def standard_error(self, gradient: Array, chosen: Sequence[int] = ()) -> float:
        """Of a quantity with this gradient, [size]; infinite where the runs do not determine it."""
        values, vectors = np.linalg.eigh(self._scaled(chosen))
        along = np.square(vectors.T @ (gradient / self.scale))
        unknown = values < _SINGULAR
        if along[unknown].sum() > 1e-9 * max(along.sum(), 1e-300):
            return float("inf")
        return float(np.sqrt(self.variance * (along[~unknown] / values[~unknown]).sum()))

    def gradient(self, name: str) -> Array:
        """Derivatives of a parameter, or of `rho[format]`, with respect to a point, [size].

        Raises RequestError when the law reads off no such name.
        """
        at, forward, back = self._stencil
        if name not in at:
            raise RequestError(
                f"the {self.objective.terms.law.name} law has no parameter {name!r} in these runs",
                where=self.objective.terms.runs.data,
                advice=f"it has {', '.join(at)}",
            )
        steps = self._steps
        return np.asarray((forward[name] - back[name]) / (steps[0] + steps[1]))

    def value(self, name: str) -> float:
        """A parameter, or `rho[format]`, at the point."""
        return float(self._stencil[0][name][0])

    @property
    def names(self) -> tuple[str, ...]:
        """What `gradient` knows."""
        return tuple(self._stencil[0])

    def _scaled(self, chosen: Sequence[int]) -> Array:
        extra = self.rows[list(chosen)]
        return np.asarray((self.matrix + extra.T @ extra) / np.outer(self.scale, self.scale))

    @cached_property
    def _steps(self) -> tuple[Array, Array]:
        """Steps up and down; none down from 0, which is the bound of coefficients."""
        low, high = self.objective.bounds
        size = _STEP * np.maximum(np.abs(self.point), 1e-3)
        free = low < high
        up, down = np.where(free, size, 0.0), np.where(free & (self.point - size > 0), size, 0.0)
        return np.where(free, up, 1.0), down

    @cached_property
    def _stencil(self) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        up, down = self._steps
        low, high = self.objective.bounds
        moved = np.diag(np.where(low < high, up, 0.0))
        return (
            self._read(self.point[None]),
            self._read(self.point + moved),
            self._read(self.point - np.diag(down)),
        )

    def _read(self, points: Array) -> dict[str, Array]:
        count = len(self.objective.terms.coefficients)
        found = self.objective.terms.read(points[:, :count], points[:, count:])
        return found.parameters | {f"rho[{name}]": rho for name, rho in found.rho.items()}


def information(objective: Objective, point: Array, extra: Runs) -> Information:
    """What the runs of an objective say at its optimum, and what `extra` runs would add.

    The losses of the extra runs are not looked at.
    Raises RequestError when an extra run is of a kind that the runs do not have.
    """
    wide, moved = extended(objective, point, extra)
    count = len(objective.loss)
    jacobian = wide.jacobian(moved[None])[0]
    low, high = wide.bounds
    jacobian[:, low == high] = 0.0
    known = jacobian[:count]
    weights = np.broadcast_to(np.asarray(objective.counts, dtype=np.float64), count)
    matrix = (known * weights[:, None]).T @ known
    return Information(wide, moved, matrix, jacobian[count:], one_run_variance(objective, point))


def one_run_variance(objective: Objective, point: Array) -> float:
    """mean psi^2 / (mean psi')^2, the variance of a Huber estimate of one location (Huber 1964).

    Both over n - p: the fit can bring p residuals within delta whatever the noise.
    """
    residual = objective.residual(point[None])[0]
    spare = max(len(residual) - objective.degrees, 1)
    psi = np.clip(residual, -objective.delta, objective.delta)
    within = int((np.abs(residual) <= objective.delta).sum()) - objective.degrees
    inside = min(max(within, 1.0), spare) / spare
    return float(np.square(psi).sum() / spare / inside**2)


def optimum(objective: Objective, iterations: int = 1000) -> Array:
    """The point of least objective, [size]: profile map, then Newton."""
    starts = profile_map(objective).starts()
    found = descend(objective, starts, np.ones((1, len(objective.loss))), iterations=iterations)
    return np.asarray(found.points[int(np.argmin(found.values))])


def joined(first: Runs, second: Runs) -> Runs:
    """Runs behind each other; columns that the second lacks are empty there."""
    empty = ("",) * len(second)
    return Runs(
        params=np.concatenate([first.params, second.params]),
        tokens=np.concatenate([first.tokens, second.tokens]),
        loss=np.concatenate([first.loss, second.loss]),
        representation=(*first.representation, *second.representation),
        columns={name: (*cells, *second.columns.get(name, empty)) for name, cells in first.columns.items()},
        addresses=(*first.addresses, *second.addresses),
        data=first.data,
        unit_of_params=first.unit_of_params,
    )


def extended(objective: Objective, point: Array, extra: Runs) -> tuple[Objective, Array]:
    """The same solution over more runs, for basis functions are centred over other runs there.

    The extra runs have the loss that the solution predicts, and count once.
    Raises RequestError when one is of a kind that the runs do not have.
    """
    terms, outer = objective.terms, point[len(objective.terms.coefficients) :]
    unseen = replace(extra, loss=np.full(len(extra), terms.loss_scale))  # so that the scale stays
    wide = Terms(terms.law, joined(terms.runs, unseen))
    if wide.coefficients != terms.coefficients or len(wide.outer) != len(terms.outer):
        strange = sorted(set(wide.coefficients) - set(terms.coefficients))
        raise RequestError(
            f"the runs have none like those asked for ({', '.join(strange) or 'other columns'})",
            where=terms.runs.data,
            advice=f"ask for representations with runs: {', '.join(terms.runs.names)}",
        )
    before, after = (t.basis(outer[None]).value[0][: len(objective.loss)] for t in (terms, wide))
    moved = point.copy()
    for t in range(before.shape[1]):
        present = np.isfinite(before[:, t])
        if present.any():
            row = int(np.argmax(present))
            own = np.unique(terms.index[:, t])
            moved[own] *= np.exp(before[row, t] - after[row, t])
    counts = np.broadcast_to(np.asarray(objective.counts, dtype=np.float64), len(before))
    found = replace(objective, terms=wide, loss=wide.runs.loss, counts=np.append(counts, np.ones(len(extra))))
    loss = found.predict(moved[None])[0]
    loss[: len(before)] = objective.loss
    return replace(found, loss=loss), moved
