"""Paths that close on themselves: rows whose first windows reach back into their last bits (tail-biting).

A row of n numbers then takes n * k bits and not one more, and its first numbers are coded as well as all
others. The best closed path would take a search for each state that it may start from. Instead the state at
the seam is that of the best free path through the numbers around it, and the row gets the shortest path from
there to there (QTIP, 2406.11235, algorithm 4, which finds the seam by a run through the whole row).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .viterbi import Bitshift, shortest_path

_TRIED = 16  # bits of the longest row that is tried in full
_TURNS = 2  # how often short rows are mended
_WINDOWS = 12  # numbers on either side of the seam, in units of those that one state spans
_CANDIDATES = 1 << 24  # numbers of one table of distances, for rows tried in full


def closed_path(trellis: Bitshift, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """States `[rows, n]` (int32) of a closed path near to each row of `x` (`[rows, n]`, n at least 1).

    `weight`, like `x`, is what the squared distance at each number counts. Rows of at most 16 bits, or of
    fewer than a state has, get the best path, since all are tried.
    """
    count = x.shape[1]
    if count * trellis.num_bits < max(trellis.state_bits, _TRIED + 1):
        return _best_of_all(trellis, x, weight)
    reach = _WINDOWS * -(-trellis.state_bits // trellis.num_bits)
    around = torch.arange(-reach, reach, device=x.device) % count
    free = shortest_path(trellis, x[:, around], None if weight is None else weight[:, around])
    head = _head(trellis, free[:, reach - 1])
    states = shortest_path(trellis, x, weight, head, head)
    if count > 2 * reach:
        return _mended(trellis, x, weight, states, around)
    for turn in range(_TURNS):
        whole = (torch.arange(count, device=x.device) + (turn + 1) * (count // 2)) % count
        states = _mended(trellis, x, weight, states, whole)
    return states


def _mended(trellis: Bitshift, x: Tensor, weight: Tensor | None, states: Tensor, part: Tensor) -> Tensor:
    """A path with its states at `part` (places in a row) made the best between those around them."""
    before, last = (_head(trellis, states[:, place]) for place in (part[0] - 1, part[-1]))
    mended = shortest_path(trellis, x[:, part], None if weight is None else weight[:, part], before, last)
    return states.index_copy(1, part, mended)


def _head(trellis: Bitshift, states: Tensor) -> Tensor:
    return states.long() % trellis.heads


def states_of(codes: Tensor, num_bits: int, state_bits: int) -> Tensor:
    """The states of closed paths from their new bits `[..., n]`: a window of L bits at each number, int32."""
    states = codes.to(torch.int32)
    newest = states
    for back in range(1, -(-state_bits // num_bits)):
        states = states | newest.roll(back, -1) << (num_bits * back)
    return states & ((1 << state_bits) - 1)


def _best_of_all(trellis: Bitshift, x: Tensor, weight: Tensor | None) -> Tensor:
    """The best of all closed paths of short rows."""
    count, bits = x.shape[1], trellis.num_bits
    number = torch.arange(1 << (count * bits), device=x.device).unsqueeze(1)
    codes = number >> (bits * torch.arange(count, device=x.device)) & ((1 << bits) - 1)
    paths = states_of(codes, bits, trellis.state_bits)
    values = trellis.values[paths.long()]
    weight = torch.ones_like(x) if weight is None else weight
    size = max(1, _CANDIDATES // len(values))
    states = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    for start in range(0, len(x), size):
        part, counts = x[start : start + size], weight[start : start + size]
        distances = counts @ values.square().T - 2 * (counts * part) @ values.T
        states[start : start + size] = paths[distances.argmin(1)]
    return states
