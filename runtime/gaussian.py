"""Gaussian data as stages see it: expectations by quadrature, and the scale a grid should have for it.

A chain that is fed x ~ N(0, 1) hands a *part* of those numbers from stage to stage (a sparse stage hands on
the survivors). `Source` is that part: the standard normal density times the probability that a value x is
still there. Every expectation a separable stage needs is then one integral between known break points, done
with Gauss-Legendre nodes in each smooth piece, which is exact to about twelve digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TAIL = 12.0  # beyond 12 standard deviations the normal density is below 1e-32
_GOLDEN, _SHARP = (5**0.5 - 1) / 2, 1e-9  # a relative width, within which rounding hides the minimum
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


class Keep(Protocol):
    """Probability that a value survives a stage, as a function of its magnitude; hashable."""

    @property
    def breaks(self) -> tuple[float, ...]:
        """Magnitudes where the probability is not smooth."""

    def __call__(self, magnitude: Array) -> Array:
        """Probability of survival at each magnitude, in [0, 1]."""


@dataclass(frozen=True)
class Source:
    """Standard Gaussian values that survived the stages so far.

    `keeps` holds one survival probability per sparse stage passed; they multiply.
    """

    keeps: tuple[Keep, ...] = ()

    def expectation(self, function: Callable[[Array], Array], edges: Array | None = None) -> float:
        """Integral of `function(x)` over surviving values: E[function(x) 1(x survives)].

        `edges` are the points where `function` is not smooth (cell borders of a grid).
        """
        nodes, weights = _nodes(tuple(self._breaks), () if edges is None else tuple(edges.tolist()))
        return float(np.sum(weights * self._density(nodes) * function(nodes)))

    def then(self, keep: Keep) -> Source:
        """The values that also survive `keep`."""
        return Source((*self.keeps, keep))

    @cached_property
    def mass(self) -> float:
        """Fraction of all values that survive."""
        return self.expectation(np.ones_like)

    @cached_property
    def power(self) -> float:
        """E[x^2 1(x survives)]."""
        return self.expectation(np.square)

    @property
    def rms(self) -> float:
        """Root mean square of the survivors."""
        return float(np.sqrt(self.power / self.mass))

    def upper(self, magnitudes: Array) -> Array:
        """P(|X| > magnitude) for a survivor X, at each magnitude."""
        if not self.keeps:
            from scipy.special import ndtr

            return np.asarray(2 * ndtr(-magnitudes))
        edges = np.unique(magnitudes)
        nodes, weights = _nodes(tuple(self._breaks), (*(-edges).tolist(), *edges.tolist()))
        order = np.argsort(np.abs(nodes))
        below = np.concatenate([[0.0], np.cumsum((weights * self._density(nodes))[order])])
        return np.asarray(1 - below[np.searchsorted(np.abs(nodes)[order], magnitudes)] / below[-1])

    def quantile(self, fraction: float) -> float:
        """The magnitude that a `fraction` of survivors stays below."""
        if not self.keeps:
            from scipy.special import ndtri

            return float(-ndtri((1 - fraction) / 2))
        from scipy.optimize import brentq

        root = brentq(
            lambda m: 1 - fraction - float(self.upper(np.array(m))), 0.0, _TAIL, xtol=1e-15, rtol=1e-14
        )
        return float(root)

    def _density(self, x: Array) -> Array:
        density = np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
        for keep in self.keeps:
            density = density * keep(np.abs(x))
        return np.asarray(density)

    @property
    def _breaks(self) -> list[float]:
        return [b for keep in self.keeps for b in keep.breaks]


@lru_cache(maxsize=64)
def _nodes(breaks: tuple[float, ...], edges: tuple[float, ...]) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [-12, 12], split at every break, edge and half unit."""
    splits = np.concatenate(
        [np.arange(-_TAIL, _TAIL + 0.25, 0.5), np.array(edges), np.array(breaks), -np.array(breaks)]
    )
    splits = np.unique(np.clip(splits, -_TAIL, _TAIL))
    half = np.diff(splits) / 2
    middle = (splits[:-1] + splits[1:]) / 2
    nodes = middle[:, None] + half[:, None] * _NODES
    return nodes.ravel(), (half[:, None] * _WEIGHTS).ravel()


def grid_error(levels: Array, scale: float, source: Source) -> float:
    """E[(x - nearest(x))^2 1(x survives)] for the levels `scale * levels` (ascending)."""
    values = levels * scale
    edges = (values[:-1] + values[1:]) / 2
    return source.expectation(lambda x: np.square(x - values[np.searchsorted(edges, x)]), edges)


def stochastic_error(levels: Array, scale: float, source: Source) -> float:
    """The same of stochastic rounding: the variance (x - l) (u - x) between levels l and u around x."""
    values = levels * scale

    def error(x: Array) -> Array:
        rank = np.clip(np.searchsorted(values, x, side="right") - 1, 0, len(values) - 2)
        low, high = values[rank], values[rank + 1]
        within = (x - low) * (high - x)
        return np.where(within < 0, np.minimum(np.square(x - low), np.square(x - high)), within)

    return source.expectation(error, values)


@lru_cache(maxsize=256)
def optimal_scale(levels: tuple[float, ...], source: Source) -> float:
    """The scale of a grid with the least Gaussian error, found globally.

    The error as a function of the scale can have several dips of nearly the same depth once a sparse stage
    came before (the survivors are bimodal), so the whole range is scanned and every promising dip is refined.
    """
    grid = np.array(levels)
    outer = float(np.abs(grid).max())
    candidates = np.geomspace(0.2, 16.0, 160) * source.rms / outer
    errors = np.array([grid_error(grid, float(s), source) for s in candidates])
    around = np.pad(errors, 1, constant_values=np.inf)
    dips = np.flatnonzero((errors <= np.minimum(around[:-2], around[2:])) & (errors < 1.25 * errors.min()))
    borders = np.pad(candidates, 1, mode="edge")
    return min(_refined(grid, source, borders[i], borders[i + 2]) for i in dips)[1]


def _refined(grid: Array, source: Source, low: float, high: float) -> tuple[float, float]:
    """Least error and its scale between two scales with one dip between them.

    By golden section: scipy's optimisers take longer to import than this takes.
    """
    scales = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    errors = [grid_error(grid, scale, source) for scale in scales]
    while high - low > _SHARP * high:
        if errors[0] < errors[1]:
            high, place = scales[1], 0
        else:
            low, place = scales[0], 1
        scales[1 - place], errors[1 - place] = scales[place], errors[place]
        scales[place] = low + _GOLDEN * (high - low) if place else high - _GOLDEN * (high - low)
        errors[place] = grid_error(grid, scales[place], source)
    return min(zip(errors, scales, strict=True))
