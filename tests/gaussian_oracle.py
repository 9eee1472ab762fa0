"""What Gaussian errors should be: integrals over cells, order statistics and maxima, and an optimiser.

Nothing here comes from the package under test. x is standard normal throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import ndtr

Array = NDArray[np.float64]
Density = Callable[[float], float]


def integers(num_bits: int, grid: str) -> Array:
    top = 2 ** (num_bits - 1)
    levels = {
        "midrise": np.arange(-top, top) + 0.5,
        "midtread": np.arange(1 - top, top),
        "twos": np.arange(-top, top),
    }
    return levels[grid].astype(np.float64)


def floats(exponent_bits: int, mantissa_bits: int) -> Array:
    bias = 2 ** (exponent_bits - 1) - 1
    steps = np.arange(2**mantissa_bits) / 2**mantissa_bits
    octaves = [(1 + steps) * 2.0 ** (e - bias) for e in range(1, 2**exponent_bits)]
    positive = np.concatenate([steps * 2.0 ** (1 - bias), *octaves])
    return np.unique(np.concatenate([-positive, positive]))


def cell_error(low: Array, high: Array, level: Array) -> Array:
    """Integral of (x - level)^2 phi(x) from low to high, in closed form."""
    low, high = np.clip(low, -40, 40), np.clip(high, -40, 40)
    at_low, at_high = (np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) for x in (low, high))
    mass = ndtr(high) - ndtr(low)
    second = mass + low * at_low - high * at_high
    return np.asarray(second - 2 * level * (at_low - at_high) + level**2 * mass)


def borders(values: Array) -> Array:
    return np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])


def rounding_error(values: Array, threshold: float = 0.0) -> float:
    """E[(x - nearest)^2; |x| > threshold] for x ~ N(0, 1)."""
    edges = borders(values)
    low, high = edges[:-1], edges[1:]
    right = cell_error(np.maximum(low, threshold), np.maximum(high, threshold), values)
    left = cell_error(np.minimum(low, -threshold), np.minimum(high, -threshold), values)
    return float(np.sum(right + left))


def integrated(values: Array, density: Density) -> float:
    """E[(x - nearest)^2] under a density, cell by cell with quad."""
    edges = np.clip(borders(values), -12, 12)
    pieces = [
        quad(lambda x, v=value: (x - v) ** 2 * density(x), low, high, epsabs=1e-14, epsrel=1e-10)[0]
        for low, high, value in zip(edges[:-1], edges[1:], values, strict=True)
        if high > low
    ]
    return math.fsum(pieces)


def gaussian(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def golden(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one dip between low and high is least."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = function(a), function(b)
    while high - low > 1e-9 * high:
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = function(b)
    return (low + high) / 2


def dips(levels: Array, threshold: float = 0.0) -> list[tuple[float, float]]:
    """Every local optimum of the scale, as (error, scale), best first."""
    scales = np.geomspace(0.1, 25, 300) / levels.max()
    errors = [rounding_error(levels * s, threshold) for s in scales]
    found = []
    for i in range(1, len(scales) - 1):
        if errors[i] <= errors[i - 1] and errors[i] < errors[i + 1]:
            scale = golden(lambda s: rounding_error(levels * s, threshold), scales[i - 1], scales[i + 1])
            found.append((rounding_error(levels * scale, threshold), scale))
    return sorted(found)


def order_statistic(rank: int, count: int, magnitude: float, cdf: float, pdf: float) -> float:
    """Density of the rank-th smallest of `count` magnitudes."""
    ways = math.factorial(count) / (math.factorial(rank - 1) * math.factorial(count - rank))
    return ways * cdf ** (rank - 1) * (1 - cdf) ** (count - rank) * pdf


def half_normal(magnitude: float) -> tuple[float, float]:
    return math.erf(magnitude / math.sqrt(2)), 2 * gaussian(magnitude)


def pruned_error(kept: int, group: int, low: float = 0.0, sparsity: float = 0.0) -> float:
    """Mean square lost to n:m among magnitudes above `low`, of which a fraction `sparsity` lies below."""

    def density(magnitude: float) -> float:
        cdf, pdf = half_normal(magnitude)
        cdf, pdf = (cdf - sparsity) / (1 - sparsity), pdf / (1 - sparsity)
        ranks = range(1, group - kept + 1)
        return magnitude**2 * sum(order_statistic(rank, group, magnitude, cdf, pdf) for rank in ranks)

    return quad(density, low, 12, epsabs=1e-13, epsrel=1e-11, limit=200)[0] / group


def kept_density(kept: int, group: int, x: float) -> float:
    """Density of a number that is there and survives n:m, from the order statistics of the survivors."""
    cdf, pdf = half_normal(abs(x))
    ranks = range(group - kept + 1, group + 1)
    return sum(order_statistic(rank, group, abs(x), cdf, pdf) for rank in ranks) / group / 2


def absmax_error(levels: Array, divisor: float, group: int, at_maximum: float) -> float:
    """Mean squared error per number for scale M / divisor; `at_maximum`: the largest number's, in scales."""

    def given_maximum(maximum: float) -> float:
        inside = 2 * ndtr(maximum) - 1
        edges = np.clip(borders(levels * maximum / divisor), -maximum, maximum)
        others = float(np.sum(cell_error(edges[:-1], edges[1:], levels * maximum / divisor))) / inside
        chance = group * inside ** (group - 1) * 2 * gaussian(maximum)
        return float(chance * ((group - 1) * others + (at_maximum * maximum / divisor) ** 2))

    return quad(given_maximum, 1e-6, 9, points=[1, 2, 3, 4], limit=200, epsrel=1e-8)[0] / group
