"""Gaussian error of a representation: E|x - R(x)|^2 / E|x|^2 for independent standard normal numbers.

Quadrature, exact to about ten digits, when every stage is separable (in the limit of many numbers per scale);
otherwise seeded Monte Carlo with its standard error. See paper 2506.01863, section 1.2 of the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from .errors import RequestError
from .representation import Representation

_ROWS, _COLUMNS = 64, 4096  # one Monte Carlo tensor; every usual group and block divides both
_ROUNDS = 16
_SEED = 2506_01863


@dataclass(frozen=True)
class GaussianError:
    """GMSE with its standard error (0 for quadrature) and the method that gave it."""

    value: float
    standard_error: float
    method: str

    @property
    def gaussian_bits(self) -> float:
        """log_{1/4} GMSE: the bits at which Shannon's bound 4^-b has this error; infinite for no error."""
        return -math.log(self.value, 4) if self.value > 0 else math.inf


@lru_cache(maxsize=512)
def gmse(representation: Representation) -> GaussianError:
    """Gaussian error of a representation, by quadrature where every stage allows it, else by Monte Carlo."""
    errors = [error for _, error in representation.walk()]
    known = [error for error in errors if error is not None]
    if len(known) == len(errors):
        return GaussianError(sum(known), 0.0, "quadrature")
    return monte_carlo(representation)


def monte_carlo(representation: Representation, rounds: int = _ROUNDS, seed: int = _SEED) -> GaussianError:
    """Gaussian error estimated on `rounds` seeded tensors of 64 x 4096; the same digits every time.

    When groups do not divide 4096, rows are the next length that they do divide.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = _columns(representation)
    ratios = []
    for _ in range(rounds):
        x = torch.randn(_ROWS, columns, generator=generator, dtype=torch.float32)
        error = (x - representation.project(x)).double().square().sum() / x.double().square().sum()
        ratios.append(float(error))
    sample = torch.tensor(ratios, dtype=torch.float64)
    return GaussianError(float(sample.mean()), float(sample.std() / math.sqrt(rounds)), "monte carlo")


def _columns(representation: Representation) -> int:
    """The first row length from 4096 up that the representation can encode."""
    for columns in range(_COLUMNS, 2 * _COLUMNS):
        try:
            representation.check((_ROWS, columns))
        except RequestError:
            continue
        return columns
    representation.check((_ROWS, _COLUMNS))  # nothing near fits: let the stage that refuses say why
    return _COLUMNS
