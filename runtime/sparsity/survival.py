"""The probability that a Gaussian number survives a sparse stage, as a function of its magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..gaussian import Array, Source

_STEP, _DEGREE, _END = 0.25, 15, 12.5  # panels of an interpolated probability, beyond the tail of a Source
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class KeepAbove:
    """Survival above a magnitude threshold."""

    threshold: float

    @property
    def breaks(self) -> tuple[float, ...]:
        return (self.threshold,)

    def __call__(self, magnitude: Array) -> Array:
        return (magnitude > self.threshold).astype(np.float64)


@dataclass(frozen=True)
class KeepLargest:
    """Survival among the `kept` largest of `group` independent draws: fewer than `kept` others are larger."""

    kept: int
    group: int
    source: Source

    @property
    def breaks(self) -> tuple[float, ...]:
        return ()

    def __call__(self, magnitude: Array) -> Array:
        above = _upper_tail(self.source, magnitude.tobytes())
        others = self.group - 1
        terms = [math.comb(others, j) * above**j * (1 - above) ** (others - j) for j in range(self.kept)]
        return np.asarray(np.sum(terms, axis=0))


@dataclass(frozen=True)
class KeepShare:
    """Survival whatever the magnitude: of whole lines, whose energies are all alike when they are long."""

    share: float

    @property
    def breaks(self) -> tuple[float, ...]:
        return ()

    def __call__(self, magnitude: Array) -> Array:
        return np.full_like(magnitude, self.share)


@dataclass(frozen=True)
class KeepVectors:
    """Survival of a vector of `size` standard Gaussian numbers among the `kept` of most energy of `group`.

    The energy of a vector is chi-squared with `size` degrees of freedom. A number's own share is known, that
    of its neighbours is averaged over.
    """

    kept: int
    group: int
    size: int

    @property
    def breaks(self) -> tuple[float, ...]:
        return ()

    def __call__(self, magnitude: Array) -> Array:
        panels = _panels(self)
        panel = np.minimum((magnitude / _STEP).astype(np.int64), len(panels) - 1)
        place = 2 * (magnitude - panel * _STEP) / _STEP - 1
        result, following = np.zeros_like(magnitude), np.zeros_like(magnitude)
        for degree in range(_DEGREE, 0, -1):  # Clenshaw's recurrence
            result, following = 2 * place * result - following + panels[panel, degree], result
        return np.asarray(np.clip(place * result - following + panels[panel, 0], 0.0, 1.0))

    def at_energy(self, energy: Array) -> Array:
        """Probability that fewer than `kept` of the others have more energy."""
        from scipy.special import bdtr, chdtrc

        return np.asarray(bdtr(self.kept - 1.0, self.group - 1, chdtrc(self.size, energy)))


@dataclass(frozen=True)
class KeepBlocks:
    """Survival of a block of `size` standard Gaussian numbers whose energy is above a threshold."""

    threshold: float
    size: int

    @property
    def breaks(self) -> tuple[float, ...]:
        """The magnitude that suffices alone; below it the probability ends like a root, hence the others."""
        alone = math.sqrt(self.threshold)
        return (alone, *(alone * (1 - 0.5 * 4.0**-k) for k in range(8)))

    def __call__(self, magnitude: Array) -> Array:
        from scipy.special import chdtrc

        missing = self.threshold - np.square(magnitude)
        if self.size == 1:
            return (missing < 0).astype(np.float64)
        return np.where(missing <= 0, 1.0, chdtrc(self.size - 1, np.maximum(missing, 0.0)))


def independent(source: Source) -> bool:
    """Whether neighbours in `source` are independent draws: no group or block decided over them together."""
    return all(isinstance(keep, KeepAbove | KeepShare) for keep in source.keeps)


def untouched(source: Source) -> bool:
    """Whether the values in `source` are standard Gaussian still."""
    return all(isinstance(keep, KeepShare) for keep in source.keeps)


@lru_cache(maxsize=64)
def _panels(keep: KeepVectors) -> Array:
    """Chebyshev coefficients `[panel, degree]` of the probability, computed once."""
    from scipy.stats import chi

    others = keep.size - 1
    edges = np.arange(0.0, math.sqrt(others) + _END, _STEP)
    radius = (edges[:, None] + _STEP * (1 + _NODES) / 2).ravel()
    weight = np.tile(_WEIGHTS * _STEP / 2, len(edges)) * chi.pdf(radius, others)
    place = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    starts = np.arange(0.0, _END, _STEP)
    magnitude = starts[:, None] + _STEP * (place + 1) / 2
    energy = np.square(magnitude)[..., None] + np.square(radius)
    values = keep.at_energy(energy) @ weight
    return np.asarray(np.polynomial.chebyshev.chebfit(place, values.T, _DEGREE).T)


@lru_cache(maxsize=16)
def _upper_tail(source: Source, magnitudes: bytes) -> Array:
    """P(|X| > m) on a set of quadrature nodes, computed once per set."""
    return source.upper(np.frombuffer(magnitudes, dtype=np.float64))
