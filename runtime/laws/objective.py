"""The objective of every fit: the sum of Huber losses of log residuals, with exact derivatives.

The *sum*, never the mean: a mean over a few hundred runs is so small that optimisers with absolute tolerances
stop where they start and report success (Besiroglu et al., arXiv 2404.10102, trace a published error to the
loss scale). Tolerances of our own solver are relative to the objective besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .base import Integers, Terms
from .runs import Array

_TINY = 1e-300  # stands in for a prediction of zero, so that its logarithm is finite


def huber(residual: Array, delta: float) -> Array:
    """r^2/2 within delta of zero, delta (|r| - delta/2) beyond (Huber 1964)."""
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
class Objective:
    """Sum over runs of weight * Huber(log predicted - log measured).

    A point is the coefficients followed by the outer parameters, [batch, size]; weights are [batch, runs] or
    [1, runs].
    """

    terms: Terms
    loss: Array
    delta: float

    @property
    def names(self) -> tuple[str, ...]:
        """What the entries of a point are called."""
        return (*self.terms.coefficients, *(axis.parameter.name for axis in self.terms.axes))

    @property
    def size(self) -> int:
        """How many parameters a point has."""
        return len(self.terms.coefficients) + len(self.terms.axes)

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds of a point, each [size]; coefficients are non-negative."""
        count = len(self.terms.coefficients)
        outer = [axis.parameter for axis in self.terms.axes]
        low = np.array([0.0] * count + [p.low for p in outer])
        high = np.array([np.inf] * count + [p.high for p in outer])
        return low, high

    def predict(self, points: Array) -> Array:
        """Predicted loss of every run, [batch, runs]."""
        count = len(self.terms.coefficients)
        value = self.terms.basis(points[:, count:]).value
        return np.asarray((points[:, :count][:, self.terms.index] * np.exp(value)).sum(axis=2))

    def residual(self, points: Array) -> Array:
        """log predicted - log measured, [batch, runs]."""
        return np.asarray(np.log(np.maximum(self.predict(points), _TINY)) - self._log_loss)

    def value(self, points: Array, weights: Array) -> Array:
        """The objective, [batch]."""
        return np.asarray((weights * huber(self.residual(points), self.delta)).sum(axis=1))

    def jacobian(self, points: Array) -> Array:
        """Derivatives of log predicted, [batch, runs, size]."""
        index, count = self.terms.index, len(self.terms.coefficients)
        basis = self.terms.basis(points[:, count:])
        weight = np.exp(basis.value)
        term = weight * points[:, :count][:, index]
        return self._jacobian(weight, term, basis.gradient, np.maximum(term.sum(axis=2), _TINY))

    def expand(self, points: Array, weights: Array) -> Expansion:
        """Value, gradient and exact Hessian (of the piecewise smooth objective) at a batch of points."""
        count = len(self.terms.coefficients)
        basis = self.terms.basis(points[:, count:])
        weight = np.exp(basis.value)  # d predicted / d coefficient
        term = weight * points[:, :count][:, self.terms.index]
        predicted = np.maximum(term.sum(axis=2), _TINY)
        residual = np.log(predicted) - self._log_loss
        clipped = np.clip(residual, -self.delta, self.delta)
        psi = weights * clipped
        inside = weights * (clipped == residual)
        jacobian = self._jacobian(weight, term, basis.gradient, predicted)

        # d2 log p = d2 p / p - (d log p)^2, and d2 p has no part that is quadratic in the coefficients
        hessian = np.swapaxes(jacobian * (inside - psi)[:, :, None], 1, 2) @ jacobian
        pull = (psi / predicted)[:, :, None]
        slopes = basis.gradient.reshape(
            len(points), -1, basis.gradient.shape[3]
        )  # [batch, runs * terms, outer]
        cross = self._uses @ ((weight * pull).reshape(len(points), -1, 1) * slopes)
        hessian[:, :count, count:] += cross
        hessian[:, count:, :count] += np.swapaxes(cross, 1, 2)
        pulled = (term * pull).reshape(len(points), -1, 1)
        hessian[:, count:, count:] += np.swapaxes(slopes * pulled, 1, 2) @ slopes
        if basis.hessian is not None:
            hessian[:, count:, count:] += ((term * pull)[..., None, None] * basis.hessian).sum(axis=(1, 2))

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

    def _jacobian(self, weight: Array, term: Array, gradient: Array, predicted: Array) -> Array:
        index, count = self.terms.index, len(self.terms.coefficients)
        jacobian = np.empty((*predicted.shape, self.size))
        jacobian[:, :, :count] = by_coefficient(weight / predicted[:, :, None], index, count)
        jacobian[:, :, count:] = (term[..., None] * gradient).sum(axis=2) / predicted[:, :, None]
        return jacobian


def by_coefficient(values: Array, index: Integers, count: int) -> Array:
    """[batch, runs, terms] laid out by coefficient, [batch, runs, count]."""
    dense = np.zeros((*values.shape[:2], count))
    rows = np.arange(values.shape[1])
    for term in range(values.shape[2]):
        dense[:, rows, index[:, term]] += values[:, :, term]
    return dense
