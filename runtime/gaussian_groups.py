"""Gaussian error of groups whose scale follows from their largest magnitude, by quadrature over that maximum.

Given that the largest magnitude of g independent standard normal numbers is m, the others are independent and
normal, cut off at m; so the error is an integral over m of sums over the cells of the grid, each in closed
form. The density of m is g F(m)^(g-1) f(m), with F(m) = 2 Phi(m) - 1 and f = 2 phi.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .gaussian import Array

_TAIL = 9.0  # the chance of a larger number is 1e-19
_PANEL = 0.125
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_AT_ONCE = 1 << 19  # cells worked on together


class ScaleOfMaximum(Protocol):
    """A scale as a function of the largest magnitude of its group."""

    @property
    def scale(self) -> Callable[[Array], Array]:
        """Distance of levels one unit apart, for each magnitude."""

    @property
    def breaks(self) -> tuple[float, ...]:
        """Magnitudes from 1 to 2 where the scale jumps, as it then does at their multiples by 2^k."""

    @property
    def signs(self) -> tuple[float, ...]:
        """The signs of the largest number, equally likely, under that scale."""


def group_error(
    levels: tuple[float, ...],
    group: int,
    rule: ScaleOfMaximum,
    deviation: float = 1.0,
    *,
    stochastic: bool = False,
) -> float:
    """E(x - R(x))^2 / sigma^2 for groups of normal numbers with standard deviation sigma (`deviation`).

    `stochastic`: numbers go up or down at random to one of the levels around them, with the mean unchanged.
    """
    from scipy.special import ndtr

    grid = np.array(levels)
    cells = _stochastic(grid) if stochastic else _nearest(grid)
    maxima, weights = _maxima(rule, cells.borders, deviation)
    inside = 2 * ndtr(maxima) - 1
    chance = group * inside ** (group - 1) * 2 * _density(maxima)
    kept = chance * weights > 1e-22
    maxima, inside, weight = maxima[kept], inside[kept], (chance * weights)[kept]
    total = 0.0
    step = max(1, _AT_ONCE // len(grid))
    for start in range(0, len(maxima), step):
        part = slice(start, start + step)
        maximum = maxima[part, None]
        scale = rule.scale(maxima[part] * deviation)[:, None] / deviation
        others = cells.errors(scale, maximum) / inside[part]
        ends = [cells.at(sign * maximum, scale) for sign in rule.signs]
        at_maximum = np.mean(ends, axis=0)[:, 0]
        total += float(np.sum(weight[part] * ((group - 1) * others + at_maximum)))
    return total / group


def _maxima(rule: ScaleOfMaximum, middles: Array, deviation: float) -> tuple[Array, Array]:
    """Quadrature nodes and weights for the largest magnitude, in standard deviations.

    Panels end where the scale jumps and where the maximum passes from one cell to the next.
    """
    ends = [np.arange(0, _TAIL + _PANEL, _PANEL)]
    powers = np.exp2(np.arange(-40.0, 40.0))
    jumps = np.sort(np.outer(powers, np.array(rule.breaks)).ravel()) / deviation
    jumps = jumps[(jumps > 1e-6) & (jumps < _TAIL)]
    if len(jumps):
        ends.append(jumps)
        for low, high in zip(jumps, np.append(jumps[1:], _TAIL), strict=True):
            scale = float(rule.scale(np.array([(low + high) / 2 * deviation]))[0]) / deviation
            crossed = middles * scale
            ends.append(crossed[(crossed > low) & (crossed < high)])
    splits = np.unique(np.concatenate(ends))
    half, middle = np.diff(splits) / 2, (splits[1:] + splits[:-1]) / 2
    return (middle[:, None] + half[:, None] * _NODES).ravel(), (half[:, None] * _WEIGHTS).ravel()


@dataclass(frozen=True)
class _Cells:
    """Intervals of numbers in units of the scale, in each of which the squared error is a quadratic."""

    borders: Array  # `[n - 1]`, ascending
    square: Array  # `[n]`: the error is square x^2 + linear x + constant
    linear: Array
    constant: Array

    def errors(self, scale: Array, maximum: Array) -> Array:
        """Integral of error times phi(x) over |x| < maximum, for each maximum and its scale (rows)."""
        from scipy.special import ndtr

        edges = np.concatenate([-maximum, np.clip(self.borders * scale, -maximum, maximum), maximum], axis=1)
        density, below = _density(edges), ndtr(edges)
        mass = np.diff(below, axis=1)
        first = -np.diff(density, axis=1)
        second = mass - np.diff(edges * density, axis=1)
        error = self.square * second + self.linear * scale * first + self.constant * scale**2 * mass
        return np.asarray(np.sum(error, axis=1))

    def at(self, x: Array, scale: Array) -> Array:
        """Error of the number x itself."""
        cell = np.searchsorted(self.borders, x / scale)
        return np.asarray(
            self.square[cell] * x**2 + self.linear[cell] * scale * x + self.constant[cell] * scale**2
        )


def _nearest(grid: Array) -> _Cells:
    """(x - v)^2 for the nearest level v."""
    return _Cells((grid[1:] + grid[:-1]) / 2, np.ones_like(grid), -2 * grid, grid**2)


def _stochastic(grid: Array) -> _Cells:
    """(x - l) (u - x) between two levels, (x - v)^2 beyond the last."""
    low, high = np.append(grid[0], grid), np.append(grid, grid[-1])
    sign = np.where(low == high, 1.0, -1.0)
    return _Cells(grid, sign, -sign * (low + high), sign * low * high)


def _density(x: Array) -> Array:
    return np.asarray(np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi))
