"""The Chinchilla law as it is fitted in public notebooks, by scipy: what our fits are held to, and timed against.

Parameters are log A, log B, log E, alpha and beta; the loss is predicted by log-sum-exp; the objective is the
sum over runs of Huber losses of log residuals, delta 1e-3 (Hoffmann et al., arXiv 2203.15556, appendix D.3;
Besiroglu et al., arXiv 2404.10102).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from scipy.optimize import OptimizeResult, minimize

from rhoc.runtime.laws.runs import Runs

DELTA = 1e-3
HOFFMANN = np.array([np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28])
"""What Hoffmann et al. published of these runs."""


def starts() -> Iterator[np.ndarray]:
    """The 4,500 of Hoffmann et al."""
    logs, exponents, floors = range(0, 30, 5), (0.0, 0.5, 1.0, 1.5, 2.0), (-1.0, -0.5, 0.0, 0.5, 1.0)
    for start in product(logs, logs, floors, exponents, exponents):
        yield np.array(start, dtype=float)


def objective(runs: Runs, weights: np.ndarray | float = 1.0) -> Callable[[np.ndarray], float]:
    """The sum of weighted Huber losses as a function of the five parameters."""
    size, data, measured = np.log(runs.params), np.log(runs.tokens), np.log(runs.loss)

    def value(p: np.ndarray) -> float:
        residual = _log_sum(p, size, data)[0] - measured
        return float((weights * _huber(residual)).sum())

    return value


def gradient(runs: Runs, weights: np.ndarray | float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    """Its derivatives."""
    size, data, measured = np.log(runs.params), np.log(runs.tokens), np.log(runs.loss)

    def slopes(p: np.ndarray) -> np.ndarray:
        predicted, (a, b, e) = _log_sum(p, size, data)
        pull = weights * np.clip(predicted - measured, -DELTA, DELTA)
        return np.array([pull @ a, pull @ b, pull @ e, -pull @ (a * size), -pull @ (b * data)])

    return slopes


def best_of(runs: Runs, points: Iterator[np.ndarray]) -> OptimizeResult:
    """The lowest end of L-BFGS-B with numeric gradients, as published, over starts."""
    value = objective(runs)
    return min((minimize(value, point, method="L-BFGS-B") for point in points), key=lambda found: found.fun)


def refitted(runs: Runs, weights: np.ndarray, start: np.ndarray) -> OptimizeResult:
    """The optimum of weighted runs by BFGS with exact gradients.

    Of 1,000 times the sum: BFGS stops at gradients below 1e-5, and those of a sum of 1e-3 nearly are.
    """
    value, slopes = objective(runs, 1e3 * weights), gradient(runs, 1e3 * weights)
    return minimize(value, start, jac=slopes, method="BFGS")


def draws(runs: Runs, start: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Optima of resampled runs from a warm start, [count, 5]."""
    weights = np.random.default_rng(seed).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), count)
    return np.array([refitted(runs, row.astype(float), start).x for row in weights])


def _log_sum(
    p: np.ndarray, size: np.ndarray, data: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Logarithm of the predicted loss, and the shares of its three terms."""
    terms = p[0] - p[3] * size, p[1] - p[4] * data, np.full_like(size, p[2])
    largest = np.maximum(np.maximum(*terms[:2]), terms[2])
    a, b, e = (np.exp(term - largest) for term in terms)
    total = a + b + e
    return np.log(total) + largest, (a / total, b / total, e / total)


def _huber(residual: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA))
