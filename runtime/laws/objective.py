"""The objective of every fit: the sum of Huber losses of residuals, with exact derivatives.

The *sum*, never the mean: a mean over a few hundred runs is so small that optimisers with absolute tolerances
stop where they start and report success (Besiroglu et al., arXiv 2404.10102, trace a published error to the
loss scale). Tolerances of our own solver are relative to the objective besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from .base import Integers
from .jet import Jet
from .runs import Array
from .terms import Basis, Flags, Terms

TINY = 1e-60  # stands in for a prediction of zero: its logarithm and its inverse squared are finite


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

    def take(self, rows: Integers) -> Expansion:
        """At these points of the batch."""
        return Expansion(self.value[rows], self.gradient[rows], self.hessian[rows], self.scale[rows])

    def put(self, rows: Integers, other: Expansion) -> None:
        """Replace these points of the batch."""
        self.value[rows], self.gradient[rows] = other.value, other.gradient
        self.hessian[rows], self.scale[rows] = other.hessian, other.scale


@dataclass(frozen=True)
class _Prediction:
    """Predicted loss [batch, runs] and what its derivatives are made of.

    weights: d predicted / d coefficient, and addends: coefficient * weight, of each term, with arrays that
    broadcast to [batch, runs]; inner: the sum under the power, and power; or None.
    """

    predicted: Array
    weights: tuple[Array, ...]
    addends: tuple[Array, ...]
    basis: Basis
    inner: Array | None = None
    power: Jet | None = None


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
        return self._predict(points, derivatives=False).predicted

    def residual(self, points: Array) -> Array:
        """Predicted against measured, [batch, runs]."""
        return self._residual(self.predict(points))

    def value(self, points: Array, weights: Array) -> Array:
        """The objective, [batch]."""
        return np.asarray((self.counts * weights * huber(self.residual(points), self.delta)).sum(axis=1))

    def jacobian(self, points: Array) -> Array:
        """Derivatives of residuals, [batch, runs, size]."""
        found = self._predict(points)
        return np.swapaxes(self._slopes(found, self._per_residual(found.predicted)), 1, 2)

    def expand(self, points: Array, weights: Array) -> Expansion:
        """Value, gradient and exact Hessian (of the piecewise smooth objective) at a batch of points."""
        found = self._predict(points)
        weights = self.counts * weights
        residual = self._residual(found.predicted)
        clipped = np.clip(residual, -self.delta, self.delta)
        psi = weights * clipped
        inside = weights * (clipped == residual)
        per_residual = self._per_residual(found.predicted)
        jacobian = self._slopes(found, per_residual)

        # d2 log p = d2 p / p - (d log p)^2; a linear residual has d2 p alone
        bend = psi if self.residuals is Residual.LOG else 0.0
        hessian = (jacobian * (inside - bend)[:, None, :]) @ np.swapaxes(jacobian, 1, 2)
        self._add_curvature(hessian, found, psi * per_residual)
        return Expansion(
            value=_dot(psi, residual - 0.5 * clipped),
            gradient=(jacobian @ psi[:, :, None])[:, :, 0],
            hessian=hessian,
            scale=(np.square(jacobian) @ weights[:, :, None])[:, :, 0],
        )

    @cached_property
    def _log_loss(self) -> Array:
        return np.asarray(np.log(self.loss))

    def _predict(self, points: Array, *, derivatives: bool = True) -> _Prediction:
        terms, count = self.terms, len(self.terms.coefficients)
        basis = terms.basis(points[:, count:], derivatives=derivatives)
        weights, addends = [], []
        for t, (log, sign) in enumerate(zip(basis.logs, terms.signs, strict=True)):
            weights.append(np.exp(log.value) if sign > 0 else -np.exp(log.value))
            own = terms.spans[t] if terms.shares[t] is None else terms.index[:, t]
            addends.append(points[:, own] * weights[t])
        if not terms.wrapped:
            return _Prediction(self._sum(addends), tuple(weights), tuple(addends), basis)
        inner = self._sum([addend for t, addend in enumerate(addends) if terms.inside[t]])
        power, unit = terms.power(points[:, count:]), terms.loss_scale
        grown = unit * inner**power.value
        outside = [addend for t, addend in enumerate(addends) if not terms.inside[t]]
        scale = power.value * grown / inner
        for t in np.flatnonzero(terms.inside).tolist():
            weights[t], addends[t] = weights[t] * scale, addends[t] * scale
        return _Prediction(self._sum([grown, *outside]), tuple(weights), tuple(addends), basis, inner, power)

    def _sum(self, addends: Sequence[Array]) -> Array:
        """Of addends, [batch, runs]; positive."""
        total = np.zeros((1, self.terms.index.shape[0]))
        for addend in addends:
            total = total + addend
        return np.maximum(total, TINY)

    def _residual(self, predicted: Array) -> Array:
        if self.residuals is Residual.LINEAR:
            return np.asarray(predicted - self.loss)
        return np.asarray(np.log(predicted) - self._log_loss)

    def _per_residual(self, predicted: Array) -> Array:
        """d residual / d predicted."""
        return np.ones_like(predicted) if self.residuals is Residual.LINEAR else 1 / predicted

    def _slopes(self, found: _Prediction, factor: Array, only: Flags | None = None) -> Array:
        """Derivatives of predicted times a factor, [batch, size, runs]; of the terms `only`, where given."""
        terms, count = self.terms, len(self.terms.coefficients)
        slopes = np.zeros((len(factor), self.size, factor.shape[1]))
        for t, log in enumerate(found.basis.logs):
            if only is not None and not only[t]:
                continue
            weight, share = found.weights[t] * factor, terms.shares[t]
            slopes[:, terms.spans[t]] = weight[:, None] if share is None else weight[:, None] * share
            if log.slopes:
                addend = found.addends[t] * factor
                for i, slope in log.slopes.items():
                    slopes[:, count + i] += addend * slope
        if found.inner is not None and found.power is not None and only is None:
            grown = terms.loss_scale * found.inner**found.power.value * np.log(found.inner) * factor
            for i, slope in found.power.slopes.items():
                slopes[:, count + i] += grown * slope
        return slopes

    def _add_curvature(self, hessian: Array, found: _Prediction, pull: Array) -> None:
        """Add the sum over runs of pull * d2 predicted; it has no part that is quadratic in coefficients,
        except through the power.
        """
        count = len(self.terms.coefficients)
        for t, log in enumerate(found.basis.logs):
            if not log.slopes:
                continue
            span, share = self.terms.spans[t], self.terms.shares[t]
            pulled, weight = found.addends[t] * pull, found.weights[t] * pull
            for i, slope in log.slopes.items():
                cross = _dot(weight, slope)[:, None] if share is None else (weight * slope) @ share.T
                hessian[:, span, count + i] += cross
                hessian[:, count + i, span] += cross
                for j, other in log.slopes.items():
                    if i <= j:
                        bend = slope * other + log.curves.get((i, j), 0.0)
                        _add(hessian, count + i, count + j, _dot(pulled, bend))
        if found.inner is not None and found.power is not None:
            self._add_power(hessian, found, found.inner, found.power, pull)

    def _add_power(self, hessian: Array, found: _Prediction, inner: Array, power: Jet, pull: Array) -> None:
        """What u s^g adds for the sum s, the power g and the loss scale u: terms in ds ds, ds dg, dg dg and
        d2g.
        """
        count, g, logs = len(self.terms.coefficients), power.value, np.log(inner)
        grown = self.terms.loss_scale * inner**g
        lean = self._slopes(found, np.ones_like(pull), self.terms.inside)  # u g s^(g-1) ds
        twice = pull * (g - 1) / (g * grown)  # makes u g (g-1) s^(g-2) ds ds of it
        hessian += (lean * twice[:, None, :]) @ np.swapaxes(lean, 1, 2)
        mixed = (lean @ (pull * (1 / g + logs))[:, :, None])[:, :, 0]  # [batch, size]: times dg
        once, squared = _dot(pull * grown, logs), _dot(pull * grown, logs**2)
        for i, slope in power.slopes.items():
            hessian[:, count + i, :] += mixed * slope
            hessian[:, :, count + i] += mixed * slope
            for j, other in power.slopes.items():
                if i <= j:
                    curve = power.curves.get((i, j), np.zeros((1, 1)))
                    bend = squared * (slope * other)[:, 0] + once * curve[:, 0]
                    _add(hessian, count + i, count + j, bend)


def _add(hessian: Array, i: int, j: int, values: Array) -> None:
    """Add to an entry [batch] and its mirror image."""
    hessian[:, i, j] += values
    if i != j:
        hessian[:, j, i] += values


def _dot(first: Array, second: Array) -> Array:
    """Sums over runs of products, [batch]; `second` may be one row, or one column."""
    if second.shape[1] == 1:
        return np.asarray(first.sum(axis=1) * second[:, 0])
    if len(second) == 1:
        return np.asarray(first @ second[0])
    return np.asarray(np.einsum("br,br->b", first, second))
