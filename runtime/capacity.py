"""Error of a representation on random numbers: E|x - R(x)|^2 / E|x|^2, for standard normal ones the GMSE.

Quadrature, exact to about ten digits, when every stage is separable (in the limit of many numbers per scale);
otherwise seeded Monte Carlo that stops at the standard error that was asked for. Scales that are powers of
two make the error depend on the size of the numbers: then it is the mean over one octave of sizes, and the
value at one stands beside it. The measure is that of paper 2506.01863; the
octave reproduces the figures of Quartet (2505.14669, Table 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .distributions import NORMAL, Distribution
from .errors import RequestError
from .representation import Representation

_ROWS, _COLUMNS = 64, 4096  # one Monte Carlo tensor; every usual group and block divides both
_SQUARE = 512  # side of one where ranks count; a rank is that for 4096 x 4096, scaled down
_ROUNDS, _MOST_ROUNDS = 16, 4096
_SIZES = 16  # of an octave; the error repeats after it, so that few points are exact
_SEED = 2506_01863
QUADRATURE, MONTE_CARLO = "quadrature", "monte carlo"


@dataclass(frozen=True)
class GaussianError:
    """An error with its standard error (0 for quadrature) and the method that gave it.

    `at_unit` is the value for numbers of unit variance where `value` is a mean over an octave; else None.
    """

    value: float
    standard_error: float
    method: str
    at_unit: float | None = None

    @property
    def gaussian_bits(self) -> float:
        """log_{1/4} GMSE: the bits at which Shannon's bound 4^-b has this error; infinite for no error."""
        return -math.log(self.value, 4) if self.value > 0 else math.inf


@lru_cache(maxsize=512)
def gmse(representation: Representation) -> GaussianError:
    """Gaussian error of a representation, by quadrature where every stage allows it, else by Monte Carlo."""
    return by_quadrature(representation) or monte_carlo(representation)


@lru_cache(maxsize=512)
def by_quadrature(representation: Representation) -> GaussianError | None:
    """Gaussian error by quadrature; None where some stage does not allow it."""
    if not representation.scale_free:
        return _octave(representation)
    errors = [error for _, error in representation.walk()]
    known = [error for error in errors if error is not None]
    return GaussianError(sum(known), 0.0, QUADRATURE) if len(known) == len(errors) else None


def _octave(representation: Representation) -> GaussianError | None:
    """The mean over an octave of sizes, by the midpoint rule; None but for one stage after rotations."""
    last = representation.stages[len(representation.rotation.stages) :]
    at_unit = last[0].gaussian_at(1.0) if len(last) == 1 else None
    if at_unit is None:
        return None
    sizes = [2.0 ** ((step + 0.5) / _SIZES) for step in range(_SIZES)]
    return GaussianError(
        _mean([last[0].gaussian_at(size) or 0.0 for size in sizes]), 0.0, QUADRATURE, at_unit
    )


def monte_carlo(
    representation: Representation,
    rounds: int = _ROUNDS,
    seed: int = _SEED,
    precision: float | None = None,
    most: int = _MOST_ROUNDS,
    distribution: Distribution = NORMAL,
) -> GaussianError:
    """Error estimated on seeded tensors, at least `rounds` of them; the same digits every time.

    Args:
        precision: the relative standard error to stop at, after at most `most` rounds; none: after `rounds`.
        distribution: what the numbers are drawn from.

    A tensor is 64 x 4096, or what the representation needs instead: longer rows, more rows for what is fitted
    to the tensor, a square of 512 with ranks scaled down for products. For one that is not scale free, sizes
    are spread evenly over an octave.

    Raises:
        ValueError: fewer than two rounds, which have no spread.
    """
    if rounds < 2:
        raise ValueError(f"a standard error takes two rounds at least, got {rounds}")
    sampled = _Sampled(representation, seed, distribution)
    ratios: list[float] = []
    while not ratios or len(ratios) < most:
        ratios += [sampled.error(phase) for phase in _phases(representation, rounds)]
        sample = torch.tensor(ratios, dtype=torch.float64)
        # Sizes go up from round to round, and only what neighbours differ by is noise.
        spread = sample.std() if representation.scale_free else sample.diff().square().mean().div(2).sqrt()
        mean, deviation = float(sample.mean()), float(spread / math.sqrt(len(ratios)))
        reached = precision is None or deviation <= precision * mean
        if reached:
            break
    at_unit = None if representation.scale_free else _mean([sampled.error(0.0) for _ in range(rounds)])
    method = MONTE_CARLO if reached else f"{MONTE_CARLO}; {len(ratios)} tensors did not reach that precision"
    return GaussianError(mean, deviation, method, at_unit)


def error_on(representation: Representation, x: Tensor, seed: int = _SEED) -> float:
    """Relative squared error on a given tensor; 0 for a tensor of zeros. `seed` is for what is random.

    Raises:
        RequestError: a tensor that cannot be encoded.
    """
    power = float(x.double().square().sum())
    error = float((x.double() - representation.drawn(seed).project(x).double()).square().sum())
    return error / power if power else 0.0


class _Sampled:
    """Errors on one seeded tensor after the other."""

    def __init__(self, representation: Representation, seed: int, distribution: Distribution) -> None:
        self.generator, self.seed = torch.Generator().manual_seed(seed), seed
        self.representation, self.shape = _sample(representation)
        self.distribution = distribution

    def error(self, phase: float) -> float:
        x = self.distribution.draw(self.shape, self.generator) * 2.0**phase
        self.seed += 1
        return error_on(self.representation, x, self.seed)


def _phases(representation: Representation, rounds: int) -> Iterator[float]:
    """The power of two that each round's numbers are multiplied by."""
    for step in range(rounds):
        yield 0.0 if representation.scale_free else (step + 0.5) / rounds


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _sample(representation: Representation) -> tuple[Representation, tuple[int, int]]:
    """What to encode, and the shape to draw: the first from 64 x 4096 up that it can encode."""
    small = Representation(tuple(stage.resized(_SQUARE, _SQUARE) for stage in representation.stages))
    if small != representation:
        return small, (_SQUARE, _SQUARE)
    wanted = [stage.sample_rows for stage in representation.all_stages()]
    rows = max(wanted) if max(wanted, default=0) > _ROWS else min(wanted, default=_ROWS)
    for columns in range(_COLUMNS, 2 * _COLUMNS):
        try:
            representation.check((rows, columns))
        except RequestError:
            continue
        return representation, (rows, columns)
    representation.check((rows, _COLUMNS))  # nothing near fits: let the stage that refuses say why
    return representation, (rows, _COLUMNS)
