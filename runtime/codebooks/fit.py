"""Codebooks fitted to vectors: k-means for each, and for additive ones rounds of codes and least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from ..determinism import one_thread
from .books import Books, Composition
from .k_means import errors, k_means, lloyd, sample
from .nearest import nearest

_ROUNDS = 6
_SAMPLE = 1 << 17  # vectors that additive codebooks are fitted to, at least
_PER_POINT = 64


def fit(
    x: Tensor,
    num_codebooks: int,
    count: int,
    composition: Composition,
    beam_size: int,
    weights: Tensor | None = None,
    *,
    seed: int = 0,
    init: str = "auto",
) -> Tensor:
    """Codebooks `[num_codebooks, count, dimensions of each]` for vectors `[n, d]`.

    Squared errors count by `weights` `[n, 1 or d]`.
    """
    if composition == "product":
        return _product(x, num_codebooks, count, weights, seed, init)
    if num_codebooks > 1 and composition == "additive":
        generator = torch.Generator().manual_seed(seed)
        x, weights = sample(x, weights, max(_SAMPLE, _PER_POINT * count), generator)
    left, books = x, []
    for book in range(num_codebooks):
        books.append(k_means(left, count, weights, seed=seed + book, init=init))
        if book + 1 < num_codebooks:
            left = left - books[-1][nearest(left, books[-1], _full(weights, left))]
    points = torch.stack(books)
    if num_codebooks == 1 or composition == "residual":
        return points
    return _alternate(x, points, beam_size, weights)


def move_on(x: Tensor, points: Tensor, composition: Composition, beam_size: int) -> Tensor:
    """Codebooks `[num_codebooks, count, d]` a few rounds of codes and least squares on from `points`.

    A single one has the vectors that no row of `x` chose moved to those with the largest errors.
    """
    with one_thread():
        if len(points) == 1:
            return lloyd(x, points[0], None, _ROUNDS)[0].unsqueeze(0)
        for _ in range(_ROUNDS):
            books = Books(points, composition, beam_size)
            points = books.refit(x, books.encode(x))
        return points


def _alternate(x: Tensor, points: Tensor, beam_size: int, weights: Tensor | None) -> Tensor:
    """Rounds of beam search and least squares; the best points seen."""
    best, least = points, torch.inf
    for _ in range(_ROUNDS):
        books = Books(points, "additive", beam_size)
        codes = books.encode(x, weights)
        error = float(errors(x, books.decode(codes), weights).sum(dtype=torch.float64))
        if not error < least:
            break
        best, least = points, error
        points = books.refit(x, codes, weights, sweeps=3)
    return best


def _product(
    x: Tensor, num_codebooks: int, count: int, weights: Tensor | None, seed: int, init: str
) -> Tensor:
    size = x.shape[1] // num_codebooks
    books = []
    for book in range(num_codebooks):
        part = slice(book * size, (book + 1) * size)
        part_weights = weights if weights is None or weights.shape[1] == 1 else weights[:, part].contiguous()
        books.append(k_means(x[:, part].contiguous(), count, part_weights, seed=seed + book, init=init))
    return torch.stack(books)


def _full(weights: Tensor | None, x: Tensor) -> Tensor | None:
    return None if weights is None else weights.expand_as(x)
