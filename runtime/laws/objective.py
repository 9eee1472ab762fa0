"""The objective of every fit: the sum of Huber losses of residuals, with exact derivatives.

The *sum*, never the mean: a mean over a few hundred runs is so small that optimisers with absolute tolerances
stop where they start and report success (Besiroglu et al., arXiv 2404.10102, trace a published error to the
loss scale). Tolerances of our own solver are relative to the objective besides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from .base import Integers
from .runs import Array
from .terms import Basis, Flags, Terms

_TINY = 1e-300  # stands in for a prediction of zero, so that its logarithm is finite


class Residual(StrEnum):
    """What is made small: log predicted - log measured, or predicted - measured."""

    LOG = "log"
    LINEAR = "linear"


def huber(residual: Array, delta: float) -> Array:
    """r^2/2 within delta of zero, delta (|r| - delta/2) beyond (Huber 1964); r^2/2 for an infinite delta."""
    clipped = np.clip(residual, -delta, delta)
    return np.asarray(clipped * (residual - 0.5 * clipped))


@dataclass(frozen=True)
class Expansion:
    """Objective at a batch of points, [batch], gradient, Hessian and the diagonal of J^T J, [batch, size]."""

    value: Array
    gradient: Array
    hessian: Array
    scale: Array


@dataclass(frozen=True)
class _Prediction:
    """Predicted loss [batch, runs] and what its derivatives are made of.

    weight: d predicted / d coefficient, and term: coefficient * weight, [batch, runs, terms]; inner: the sum
    under the power, or None.
    """

    predicted: Array
    weight: Array
    term: Array
    basis: Basis
    inner: Array | None


@dataclass(frozen=True)
class Objective:
    """Sum over runs of weight * Huber(residual).

    A point is the coefficients followed by the outer parameters, [batch, size]; weights are [batch, runs] or
    [1, runs]; loss is [runs], or [batch, runs] where every problem of a batch has measurements of its own.
    counts: how often each run counts beside these weights, [runs].
    """

    terms: Terms
    loss: Array
    delta: float
    residuals: Residual = Residual.LOG
    counts: Array | float = 1.0

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the entries of a point are called."""
        return (*self.terms.coefficients, *(parameter.name for parameter in self.terms.outer))

    @property
    def size(self) -> int:
        """How many entries a point has."""
        return len(self.terms.coefficients) + len(self.terms.outer)

    @property
    def degrees(self) -> int:
        """How many of them are free."""
        return self.size - int(self.terms.fixed.sum())

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds of a point, each [size]; coefficients are non-negative."""
        outer, fixed = self.terms.outer, self.terms.fixed
        low = np.array([*np.where(fixed, 1.0, 0.0), *(p.low for p in outer)])
        high = np.array([*np.where(fixed, 1.0, np.inf), *(p.high for p in outer)])
        return low, high

    def among(self, rows: Integers) -> Objective:
        """The objective of these problems of a batch, which may have measurements of their own."""
        return self if self.loss.ndim == 1 else replace(self, loss=self.loss[rows])

    def predict(self, points: Array) -> Array:
        """Predicted loss of every run, [batch, runs]."""
        return self._predict(points).predicted

    def residual(self, points: Array) -> Array:
        """Predicted against measured, [batch, runs]."""
        return self._residual(self.predict(points))

    def value(self, points: Array, weights: Array) -> Array:
        """The objective, [batch]."""
        return np.asarray((self.counts * weights * huber(self.residual(points), self.delta)).sum(axis=1))

    def jacobian(self, points: Array) -> Array:
        """Derivatives of residuals, [batch, runs, size]."""
        found = self._predict(points)
        return self._slopes(found, points) * self._per_residual(found.predicted)[:, :, None]

    def expand(self, points: Array, weights: Array) -> Expansion:
        """Value, gradient and exact Hessian (of the piecewise smooth objective) at a batch of points."""
        found = self._predict(points)
        weights = self.counts * weights
        residual = self._residual(found.predicted)
        clipped = np.clip(residual, -self.delta, self.delta)
        psi = weights * clipped
        inside = weights * (clipped == residual)
        per_residual = self._per_residual(found.predicted)
        jacobian = self._slopes(found, points) * per_residual[:, :, None]

        # d2 log p = d2 p / p - (d log p)^2; a linear residual has d2 p alone
        bend = psi if self.residuals is Residual.LOG else 0.0
        hessian = np.swapaxes(jacobian * (inside - bend)[:, :, None], 1, 2) @ jacobian
        self._add_curvature(hessian, found, points, psi * per_residual)
        return Expansion(
            value=(weights * clipped * (residual - 0.5 * clipped)).sum(axis=1),
            gradient=(psi[:, None, :] @ jacobian)[:, 0],
            hessian=hessian,
            scale=(weights[:, None, :] @ np.square(jacobian))[:, 0],
        )

    @cached_property
    def _log_loss(self) -> Array:
        return np.asarray(np.log(self.loss))

    @cached_property
    def _uses(self) -> Array:
        """Which coefficient each term of each run multiplies, as 0 or 1, [coefficients, runs * terms]."""
        count = len(self.terms.coefficients)
        return np.asarray(self.terms.index.ravel() == np.arange(count)[:, None], dtype=np.float64)

    def _predict(self, points: Array) -> _Prediction:
        count = len(self.terms.coefficients)
        basis = self.terms.basis(points[:, count:])
        weight = np.exp(basis.value) * self.terms.signs
        term = weight * points[:, :count][:, self.terms.index]
        if not self.terms.wrapped:
            return _Prediction(np.maximum(term.sum(axis=2), _TINY), weight, term, basis, None)
        inside = self.terms.inside
        inner = np.maximum(term[:, :, inside].sum(axis=2), _TINY)
        power = self.terms.power(points[:, count:])
        outside = term[:, :, ~inside].sum(axis=2)
        unit = self.terms.loss_scale
        predicted = np.maximum(outside + unit * inner**power.value, _TINY)
        scale = np.where(inside, (unit * power.value * inner ** (power.value - 1))[:, :, None], 1.0)
        return _Prediction(predicted, weight * scale, term * scale, basis, inner)

    def _residual(self, predicted: Array) -> Array:
        if self.residuals is Residual.LINEAR:
            return np.asarray(predicted - self.loss)
        return np.asarray(np.log(predicted) - self._log_loss)

    def _per_residual(self, predicted: Array) -> Array:
        """d residual / d predicted."""
        return np.ones_like(predicted) if self.residuals is Residual.LINEAR else 1 / predicted

    def _slopes(self, found: _Prediction, points: Array, only: Flags | None = None) -> Array:
        """Derivatives of predicted, [batch, runs, size]; of the terms `only`, where given."""
        index, count = self.terms.index, len(self.terms.coefficients)
        kept = slice(None) if only is None else only
        slopes = np.empty((*found.predicted.shape, self.size))
        slopes[:, :, :count] = by_coefficient(found.weight[:, :, kept], index[:, kept], count)
        slopes[:, :, count:] = (found.term[:, :, kept, None] * found.basis.gradient[:, :, kept]).sum(axis=2)
        if found.inner is not None and only is None:
            power = self.terms.power(points[:, count:])
            grown = self.terms.loss_scale * found.inner**power.value * np.log(found.inner)
            for i, slope in power.slopes.items():
                slopes[:, :, count + i] += grown * slope
        return slopes

    def _add_curvature(self, hessian: Array, found: _Prediction, points: Array, pull: Array) -> None:
        """Add the sum over runs of pull * d2 predicted; it has no part that is quadratic in coefficients,
        except through the power."""
        count, basis = len(self.terms.coefficients), found.basis
        batch = len(points)
        slopes = basis.gradient.reshape(batch, -1, basis.gradient.shape[3])  # [batch, runs * terms, outer]
        cross = self._uses @ ((found.weight * pull[:, :, None]).reshape(batch, -1, 1) * slopes)
        hessian[:, :count, count:] += cross
        hessian[:, count:, :count] += np.swapaxes(cross, 1, 2)
        pulled = found.term * pull[:, :, None]
        hessian[:, count:, count:] += np.swapaxes(slopes * pulled.reshape(batch, -1, 1), 1, 2) @ slopes
        if basis.hessian is not None:
            hessian[:, count:, count:] += (pulled[..., None, None] * basis.hessian).sum(axis=(1, 2))
        if found.inner is not None:
            self._add_power(hessian, found, points, pull)

    def _add_power(self, hessian: Array, found: _Prediction, points: Array, pull: Array) -> None:
        """What u s^g adds for the sum s, the power g and the loss scale u: terms in ds ds, ds dg, dg dg and
        d2g.
        """
        count, inner = len(self.terms.coefficients), found.inner
        assert inner is not None
        power = self.terms.power(points[:, count:])
        g, logs = power.value, np.log(inner)
        grown = self.terms.loss_scale * inner**g
        lean = self._slopes(found, points, self.terms.inside)  # u g s^(g-1) ds
        twice = pull * (g - 1) / (g * grown)  # makes u g (g-1) s^(g-2) ds ds of it
        hessian += np.swapaxes(lean * twice[:, :, None], 1, 2) @ lean
        mixed = ((pull * (1 / g + logs))[:, None, :] @ lean)[:, 0]  # [batch, size]: times dg
        for i, slope in power.slopes.items():
            hessian[:, count + i, :] += mixed * slope
            hessian[:, :, count + i] += mixed * slope
            for j, other in power.slopes.items():
                hessian[:, count + i, count + j] += (pull * grown * logs**2).sum(axis=1) * (slope * other)[
                    :, 0
                ]
        for (i, j), curve in power.curves.items():
            bent = (pull * grown * logs).sum(axis=1) * curve[:, 0]
            hessian[:, count + i, count + j] += bent
            if i != j:
                hessian[:, count + j, count + i] += bent


def by_coefficient(values: Array, index: np.ndarray, count: int) -> Array:
    """[batch, runs, terms] laid out by coefficient, [batch, runs, count]."""
    dense = np.zeros((*values.shape[:2], count))
    rows = np.arange(values.shape[1])
    for term in range(values.shape[2]):
        dense[:, rows, index[:, term]] += values[:, :, term]
    return dense
