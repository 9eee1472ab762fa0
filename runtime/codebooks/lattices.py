"""Tables of lattice points: the shortest vectors of D4 and E8 (Conway and Sloane, chapter 4).

Lattices are worked out in half units, so that E8, whose points are all whole or all halves, has integer
coordinates.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

DIMENSIONS = {"d4": 4, "e8": 8}


@lru_cache(maxsize=4)
def lattice_table(name: str, count: int) -> Tensor:
    """The `count` shortest vectors of `d4` or `e8`, float32 `[count, 4 or 8]`, in order of their norms.

    D4 is all integer vectors with an even sum; E8 those of eight dimensions and the same moved by one half
    everywhere. Vectors come with their negatives; of a shell that does not fit whole, pairs are taken at even
    distances in lexicographic order, so that no direction is preferred.
    """
    doubled = _shortest(DIMENSIONS[name], name == "e8", count)
    norms = doubled.square().sum(1)
    order = torch.argsort(norms, stable=True)  # lexicographic inside a shell
    shell_norm = norms[order[count - 1]]
    inner = order[norms[order] < shell_norm]
    shell = order[norms[order] == shell_norm]  # v at position i, -v at position -1 - i
    pairs, odd = divmod(count - len(inner), 2)
    half = len(shell) // 2
    chosen = (torch.arange(pairs + odd) * half).div(max(pairs + odd, 1), rounding_mode="floor")
    mirrored = len(shell) - 1 - chosen[:pairs]
    outer = shell[torch.cat([chosen, mirrored]).sort().values]
    return doubled[torch.cat([inner, outer])].float() / 2


def _shortest(dimensions: int, halves: bool, count: int) -> Tensor:
    """At least `count` shortest points in half units, whole shells, in lexicographic order."""
    limit = 4
    while True:
        points = _ball(dimensions, 0, limit)
        if halves:
            points = torch.cat([points, _ball(dimensions, 1, limit)])
        if len(points) >= count:
            return points[_lexicographic(points)]
        limit = limit * 5 // 4 + 4


def _ball(dimensions: int, parity: int, limit: int) -> Tensor:
    """Doubled coordinates, all even or all odd, sum divisible by four, squared norm up to `limit`."""
    reach = int(limit**0.5)
    line = torch.arange(-reach, reach + 1)
    line = line[line % 2 == parity]
    points = torch.zeros(1, 0, dtype=torch.int64)
    for done in range(dimensions):
        points = torch.cat([points.repeat_interleave(len(line), 0), line.repeat(len(points)).unsqueeze(1)], 1)
        left = (dimensions - done - 1) * parity  # the least that the coordinates to come add to the norm
        points = points[points.square().sum(1) + left <= limit]
    return points[points.sum(1) % 4 == 0]


def _lexicographic(points: Tensor) -> Tensor:
    """The order of rows by first coordinate, then second, and so on."""
    base = 2 * int(points.abs().max()) + 1
    key = torch.zeros(len(points), dtype=torch.int64)
    for column in points.T:
        key = key * base + column + base // 2
    return torch.argsort(key)
