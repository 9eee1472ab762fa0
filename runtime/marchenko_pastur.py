"""Singular values of Gaussian matrices: how much of a large one a product of low rank cannot hold.

For rows x columns independent N(0, 1) entries with rows <= columns, the eigenvalues x of X X^T / columns
follow the law of Marchenko and Pastur (Mat. Sb. 1967) as both grow: density sqrt((b - x)(x - a)) / (2 pi c x)
on [a, b], a = (1 - sqrt c)^2, b = (1 + sqrt c)^2, c = rows / columns. Its mean is 1, so what the largest ones
hold of the mean is the share of the squares that the best approximation of that rank keeps (Eckart and Young
1936).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

REFERENCE_SHAPE = (4096, 4096)
"""The matrix that bits per weight and ranks are meant for, where nothing else is said."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


@lru_cache(maxsize=256)
def leftover(rank: float, shape: tuple[int, int] = REFERENCE_SHAPE) -> float:
    """The share of the squared entries of a Gaussian matrix of this shape that its best approximation of this
    rank leaves over, to eight digits in the limit of large matrices."""
    rows, columns = min(shape), max(shape)
    if rank <= 0 or not rows:
        return 1.0
    if rank >= rows:
        return 0.0
    from scipy.optimize import brentq

    ratio = rows / columns
    angle = brentq(lambda t: _shares(t, ratio)[0] - rank / rows, 0.0, np.pi, xtol=1e-14)
    return 1 - _shares(angle, ratio)[1]


def _shares(angle: float, ratio: float) -> tuple[float, float]:
    """The share of eigenvalues, and of their sum, above the one at an angle.

    With x = 1 + c + 2 sqrt(c) cos t the density is smooth in t, from 0 (the largest) to pi:
    (2 / pi) sin(t)^2 / x dt, and times x for the sum.
    """
    t = angle / 2 * (1 + _NODES)
    weights = angle / 2 * _WEIGHTS * (2 / np.pi) * np.sin(t) ** 2
    root = np.sqrt(ratio)
    eigenvalue = (1 - root) ** 2 + 4 * root * np.cos(t / 2) ** 2  # 1 + c + 2 sqrt(c) cos t, exact near pi
    return float(np.sum(weights / eigenvalue)), float(np.sum(weights))
