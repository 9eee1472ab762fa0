"""Codebooks that no tensor stores: known vectors, times the factor that suits Gaussian numbers."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..gaussian import Source
from . import e8p
from .books import Books, Composition
from .factors import FACTORS
from .gaussian import gaussian_table, shipped
from .lattices import DIMENSIONS, lattice_table

_SEED = 2402_04396
_NUMBERS = 1 << 17  # the sample that factors are found on, less for long tables
_SCORES = 1 << 27
_SCAN = tuple(1.15**i for i in range(-5, 6))
_GOLDEN = (math.sqrt(5) - 1) / 2
_REFINEMENTS = 8


def refusal(source: str, dimensions: int, bits: int) -> str:
    """Why there is no such table; empty when there is one."""
    if source == "e8p" and (dimensions, bits) != (e8p.DIMENSIONS, e8p.BITS):
        return "e8p has in_group_size 8 and nbits_per_codebook 16"
    if source in DIMENSIONS and dimensions != DIMENSIONS[source]:
        return f"{source} has in_group_size {DIMENSIONS[source]}"
    if source == "gaussian" and (dimensions, bits) not in shipped():
        known = [b for d, b in sorted(shipped()) if d == dimensions]
        sizes = ", ".join(map(str, sorted({d for d, _ in shipped()})))
        return (
            f"no Gaussian table has in_group_size {dimensions} and nbits_per_codebook {bits}; "
            + (f"with {dimensions} there are {known} bits" if known else f"there are in_group_size {sizes}")
            + "; or choose source: kmeans"
        )
    return ""


def points(source: str, dimensions: int, bits: int) -> Tensor:
    """The vectors of a known table, float32 `[2^bits, dimensions]`. Do not change them."""
    if source == "e8p":
        return e8p.points()
    if source in DIMENSIONS:
        return lattice_table(source, 1 << bits)
    table = gaussian_table(dimensions, 1 << bits)
    assert table is not None  # `refusal` was asked
    return table


def books(
    source: str,
    dimensions: int,
    bits: int,
    factors: tuple[float, ...],
    composition: Composition,
    beam_size: int,
    like: Tensor,
) -> Books:
    """Known tables times their factors, one codebook for each factor, with the dtype and device of `like`."""
    table = points(source, dimensions, bits).to(like)
    scaled = torch.stack([table * factor for factor in factors])
    return Books(scaled, composition, beam_size, factors if source == "e8p" else None)


def optimal_factors(
    source: str, dimensions: int, bits: int, num_codebooks: int, composition: Composition, data: Source
) -> tuple[float, ...]:
    """What each codebook is multiplied by for numbers of unit rms: known already, or searched."""
    known = None if data.keeps else FACTORS.get((source, dimensions, bits, num_codebooks, composition))
    return known or search_factors(source, dimensions, bits, num_codebooks, composition, data)


@lru_cache(maxsize=64)
def search_factors(
    source: str, dimensions: int, bits: int, num_codebooks: int, composition: Composition, data: Source
) -> tuple[float, ...]:
    """The factors of least squared error, to three digits.

    Found on a seeded sample of the data, one codebook after the other: the error as a function of the factor
    is scanned, then refined by golden section. A Gaussian-optimal table for Gaussian data needs none.
    """
    table = points(source, dimensions, bits)
    left = _sample(data, dimensions, _SCORES // len(table)) / data.rms
    factors: list[float] = []
    for book in range(1 if composition == "product" else num_codebooks):
        if source == "gaussian" and not data.keeps and not book:
            factors.append(1.0)
        else:
            factors.append(_best_factor(source, dimensions, bits, left))
        if book + 1 < num_codebooks:
            left = left - _restored(source, dimensions, bits, left, factors[-1])
    return tuple(factors * (num_codebooks // len(factors)))


def _best_factor(source: str, dimensions: int, bits: int, x: Tensor) -> float:
    def error(factor: float) -> float:
        return float((x - _restored(source, dimensions, bits, x, factor)).double().square().sum())

    table = points(source, dimensions, bits)
    middle = float(x.double().square().mean().sqrt() / table.double().square().mean().sqrt())
    middle *= min(_SCAN, key=lambda s: error(s * middle))
    low, high = middle / _SCAN[6], middle * _SCAN[6]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = error(left), error(right)
    for _ in range(_REFINEMENTS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = error(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = error(right)
    return float(f"{(low + high) / 2:.3g}")


def _restored(source: str, dimensions: int, bits: int, x: Tensor, factor: float) -> Tensor:
    one = books(source, dimensions, bits, (factor,), "residual", 1, x)
    return one.decode(one.encode(x))


def _sample(data: Source, dimensions: int, most: int) -> Tensor:
    """Vectors `[., dimensions]` of seeded numbers from a source: normal ones, thinned by what survives."""
    count = min(_NUMBERS, most * dimensions) // dimensions * dimensions
    generator = np.random.Generator(np.random.PCG64(_SEED))
    kept = np.empty(0)
    while len(kept) < count:
        numbers = generator.standard_normal(_NUMBERS)
        chance = np.ones_like(numbers)
        for keep in data.keeps:
            chance = chance * keep(np.abs(numbers))
        kept = np.concatenate([kept, numbers[generator.random(_NUMBERS) < chance]])
    return torch.from_numpy(kept[:count]).float().reshape(-1, dimensions)
