"""k-means: the table of vectors with the least squared error on given ones (Lloyd 1982).

Where vectors are many, rounds take a fresh sample each (mini-batch, Sculley 2010), which costs less than
rounds on all of them and leaves poor local optima; the last few take a large one. Choices come from a seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..determinism import one_thread
from .gaussian import gaussian_table
from .nearest import nearest, pieces

_BATCH = 256  # vectors per point in a mini-batch
_BATCH_RANGE = (1 << 14, 1 << 17)
_LEAST_PER_POINT = 8
_LARGE, _LARGE_ROUNDS = 1 << 20, 3  # the last rounds: vectors in each, and how many
_ROUNDS = 80
_WORK = 1 << 37  # distances; long tables get fewer rounds
_TRIAL_ROUNDS = 10  # after which the better start goes on
_LEAST_GAIN = 3e-4  # of rounds on all vectors
_DRAWS = 256  # draws of k-means++; larger tables take several points at a draw


def k_means(
    x: Tensor, count: int, weights: Tensor | None = None, *, seed: int = 0, init: str = "auto"
) -> Tensor:
    """A table `[count, d]` fitted to the rows of `x` `[n, d]` (float32 or float64), in the dtype of `x`.

    `weights` is `[n, 1]` or `[n, d]`: what squared errors count. `init` is `kmeans++` (Arthur and
    Vassilvitskii 2007), `gaussian` (the Gaussian-optimal table, moved to the mean and spread of `x`) or
    `auto` (the better of both after a few rounds). Points that no vector chose move to the vectors with the
    largest errors. With fewer distinct vectors than points the rest of the table is zero.
    """
    if not len(x):
        return x.new_zeros(count, x.shape[1])
    with one_thread():
        return _fitted(x, count, weights, torch.Generator().manual_seed(seed), init)


def _fitted(x: Tensor, count: int, weights: Tensor | None, generator: torch.Generator, init: str) -> Tensor:
    size = max(min(max(_BATCH * count, _BATCH_RANGE[0]), _BATCH_RANGE[1]), _LEAST_PER_POINT * count)
    whole = len(x) <= 4 * size
    size = len(x) if whole else size
    rounds = max(_LARGE_ROUNDS, min(_ROUNDS, _WORK // (size * count)))
    part, part_weights = sample(x, weights, size, generator)
    starts = _starts(part, count, part_weights, init, generator)
    trials = [lloyd(part, start, part_weights, _TRIAL_ROUNDS if starts[1:] else 1) for start in starts]
    table = min(trials, key=lambda trial: trial[1])[0]
    if whole:
        return lloyd(x, table, weights, rounds)[0]
    for _ in range(rounds):
        part, part_weights = sample(x, weights, size, generator)
        table = lloyd(part, table, part_weights, 1)[0]
    part, part_weights = sample(x, weights, max(_LARGE, _LEAST_PER_POINT * count), generator)
    return lloyd(part, table, part_weights, _LARGE_ROUNDS)[0]


def lloyd(x: Tensor, table: Tensor, weights: Tensor | None, rounds: int) -> tuple[Tensor, float]:
    """Lloyd's rounds from a table until one gains next to nothing: the table, and the last error known."""
    error = before = torch.inf
    for _ in range(rounds):
        codes = nearest(x, table, weights)
        losses = errors(x, table[codes], weights)
        error = float(losses.sum(dtype=torch.float64))
        if not error < (1 - _LEAST_GAIN) * before:
            break
        before = error
        table, used = centroids(x, codes, table, weights)
        _reseed(table, used, x, losses)
    return table, error


def centroids(x: Tensor, codes: Tensor, table: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The (weighted) mean of the vectors of each code, and how many they are; unused entries stay."""
    shape = (len(table), x.shape[1])
    sums = torch.zeros(shape, dtype=torch.float64, device=x.device)
    mass = torch.zeros(shape, dtype=torch.float64, device=x.device)
    used = torch.bincount(codes, minlength=len(table))
    for rows in pieces(len(x), 1 << 20):
        part = x[rows].double()
        if weights is not None:
            weight = weights[rows].double().expand_as(part)
            mass.index_add_(0, codes[rows], weight)
            part = part * weight
        sums.index_add_(0, codes[rows], part)
    mass = used.double().unsqueeze(1).expand(shape) if weights is None else mass
    return torch.where(mass > 0, sums / mass.clamp_min(1e-300), table.double()).to(table.dtype), used


def errors(x: Tensor, restored: Tensor, weights: Tensor | None) -> Tensor:
    """Squared error of each vector, weighted where weights are given, `[n]`."""
    squares = (x - restored).square_()
    return (squares if weights is None else squares.mul_(weights)).sum(1)


def _reseed(table: Tensor, used: Tensor, x: Tensor, losses: Tensor) -> None:
    """Move points that no vector chose to the vectors with the largest errors. Changes `table`."""
    idle = torch.nonzero(used == 0).squeeze(1)
    worst = losses.topk(min(len(idle), len(x))).indices
    worst = worst[losses[worst] > 0]
    table[idle[: len(worst)]] = x[worst]


def sample(
    x: Tensor, weights: Tensor | None, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """`size` seeded rows of `x`, with repetition, and their weights; all where there are no more."""
    if size >= len(x):
        return x, weights
    rows = torch.randint(len(x), (size,), generator=generator).to(x.device)
    return x[rows], None if weights is None else weights[rows]


def _starts(
    x: Tensor, count: int, weights: Tensor | None, init: str, generator: torch.Generator
) -> list[Tensor]:
    """The tables that Lloyd's rounds begin with."""
    starts = []
    if init in ("auto", "kmeans++"):
        starts.append(_plus_plus(x, count, weights, generator))
    standard = gaussian_table(x.shape[1], count) if init in ("auto", "gaussian") else None
    if standard is not None:
        spread = x.std(0, unbiased=False)
        starts.append(standard.to(x) * spread + x.mean(0))
    return starts


def _plus_plus(x: Tensor, count: int, weights: Tensor | None, generator: torch.Generator) -> Tensor:
    """k-means++: each next point is a vector drawn with probability in proportion to its squared error."""
    per_draw = -(-count // _DRAWS)
    table = x.new_zeros(count, x.shape[1])
    losses = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    chances = torch.ones_like(losses, dtype=torch.float64)
    for start in range(0, count, per_draw):
        summed = chances.cumsum(0)
        if not float(summed[-1]) > 0:
            break  # every vector is in the table
        size = min(per_draw, count - start)
        draws = torch.rand(size, generator=generator, dtype=torch.float64).to(x.device) * summed[-1]
        chosen = torch.searchsorted(summed, draws, right=True).clamp_max(len(x) - 1)
        added = x[chosen]
        table[start : start + size] = added
        closest = added[nearest(x, added, weights)] if size > 1 else added
        losses = torch.minimum(losses, errors(x, closest, weights))
        chances = losses.double()
    return table
