"""E8P, the codebook of QuIP# (2402.04396, section 4.2): 2^16 points of E8 moved by 1/4, and their search.

A point is s, one of 256 vectors of positive halves, with signs, plus or minus 1/4 in every coordinate. The
256 are all magnitudes that occur in D8 + 1/2 up to squared norm 10, which are 227, and 29 of squared norm 12.
The sum of the signed vector is even, so seven signs give the eighth. A code is 8 bits of s, 7 signs, 1 bit of
the move. Which 29 are taken makes no difference to Gaussian data; here they are evenly spaced among the 56
that have five coordinates of 3/2.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from .nearest import pieces

DIMENSIONS = 8
BITS = 16
_MOVES = (0.25, -0.25)  # by the last bit of a code
_SHORT, _LONG = 10, 12  # squared norms
_NUM_LONG = 29
_DIGITS = 3  # magnitudes are 1/2, 3/2 and 5/2
_VECTORS = 1 << 15  # at a time


@lru_cache(maxsize=1)
def magnitudes() -> Tensor:
    """The 256 vectors s, float32 `[256, 8]`."""
    rows = [row for row in product((0.5, 1.5, 2.5), repeat=DIMENSIONS) if _norm(row) <= _LONG]
    short = [row for row in rows if _norm(row) <= _SHORT]
    long = [row for row in rows if _norm(row) == _LONG and max(row) < 2]
    return torch.tensor(short + [long[i * len(long) // _NUM_LONG] for i in range(_NUM_LONG)])


def _norm(row: tuple[float, ...]) -> float:
    return sum(value * value for value in row)


@lru_cache(maxsize=1)
def points() -> Tensor:
    """All 65536 points in the order of their codes, float32 `[65536, 8]`."""
    codes = torch.arange(1 << BITS)
    size = magnitudes()[codes >> 8]
    negative = ((codes.unsqueeze(1) >> torch.arange(1, DIMENSIONS)) & 1).bool()
    odd = (size.sum(1) % 2 == 1) ^ (negative.sum(1) % 2 == 1)  # an odd sum becomes even by one sign more
    signs = 1 - 2 * torch.cat([negative, odd.unsqueeze(1)], 1).float()
    return signs * size + torch.tensor(_MOVES)[codes & 1].unsqueeze(1)


def nearest(x: Tensor) -> Tensor:
    """The code of the point nearest to each row of `x` `[n, 8]` (float32 or float64), int64 `[n]`.

    The nearest point of the whole of E8 + 1/4 is known in closed form; where it is one of the codebook it
    is the answer. Only the rest, long vectors, are compared with every s.
    """
    x = torch.nan_to_num(x.detach())
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for rows in pieces(len(x), _VECTORS):
        codes[rows] = _nearest(x[rows])
    return codes


def _nearest(x: Tensor) -> Tensor:
    found = [_in_lattice(x - move) for move in _MOVES]
    move = (found[1][1] < found[0][1]).long()
    entry = torch.where(move.bool(), found[1][0], found[0][0])
    negative = torch.where(move.bool().unsqueeze(1), found[1][2], found[0][2])
    codes = _code(entry, negative, move)
    outside = torch.nonzero(entry < 0).squeeze(1)
    if len(outside):
        codes[outside] = _among_all(x[outside])
    return codes


def _in_lattice(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest point of D8 + 1/2 (Conway and Sloane, chapter 20): entry or -1, distance, signs.

    Every coordinate goes to its nearest half; when the sum is odd, the one that was worst off goes to its
    second nearest, on the other side.
    """
    rounded = torch.floor(y) + 0.5
    off = y - rounded
    worst = off.abs().argmax(1, keepdim=True)
    other = torch.where(off.gather(1, worst) < 0, -1.0, 1.0).to(y.dtype)
    odd = (rounded.sum(1, keepdim=True) % 2 != 0).to(y.dtype)
    rounded = rounded.scatter_add(1, worst, other * odd)
    distance = (y - rounded).square().sum(1)
    digits = (rounded.abs() - 0.5).clamp_max(_DIGITS).long()
    inside = (digits < _DIGITS).all(1)
    key = (digits.clamp_max(_DIGITS - 1) * _powers(y.device)).sum(1)
    entry = torch.where(inside, _entry_of(y.device)[key], -1)
    return entry, distance, rounded < 0


def _among_all(x: Tensor) -> Tensor:
    """The code with the least distance among all, for each row of `x`.

    For one s, signs as those of the vector are best; where their number has the wrong parity, the sign that
    costs least is turned, min |y_i| s_i.
    """
    size = magnitudes().to(x)
    odd_sum = size.sum(1) % 2 == 1
    best: list[tuple[Tensor, Tensor, Tensor]] = []
    for shift in _MOVES:
        y = x - shift
        magnitude, negative = y.abs(), y < 0
        turned = (negative.sum(1) % 2 == 1).unsqueeze(1) ^ odd_sum
        cheapest = magnitude[:, :1] * size[:, 0]
        for i in range(1, DIMENSIONS):
            cheapest = torch.minimum(cheapest, magnitude[:, i : i + 1] * size[:, i])
        with torch.autocast(x.device.type, enabled=False):
            gain = magnitude @ (2 * size).T - size.square().sum(1) - 4 * cheapest * turned
        gain, entry = gain.max(1)
        turn = turned.gather(1, entry.unsqueeze(1))
        place = (magnitude * size[entry]).argmin(1, keepdim=True)
        negative = negative.scatter(1, place, negative.gather(1, place) ^ turn)
        best.append((y.square().sum(1) - gain, entry, negative))
    move = (best[1][0] < best[0][0]).long()
    chosen = move.bool()
    entry = torch.where(chosen, best[1][1], best[0][1])
    return _code(entry, torch.where(chosen.unsqueeze(1), best[1][2], best[0][2]), move)


def _code(entry: Tensor, negative: Tensor, move: Tensor) -> Tensor:
    """Entry, signs `[n, 8]` and move to codes."""
    signs = (negative[:, :-1].long() << torch.arange(1, DIMENSIONS, device=entry.device)).sum(1)
    return (entry << 8) | signs | move


def _powers(device: torch.device) -> Tensor:
    return _DIGITS ** torch.arange(DIMENSIONS, device=device)


@lru_cache(maxsize=4)
def _entry_of(device: torch.device) -> Tensor:
    """The entry of each pattern of magnitudes, read as a number in base three; -1 for none."""
    entries = torch.full((_DIGITS**DIMENSIONS,), -1)
    digits = (magnitudes() - 0.5).long()
    entries[(digits * _powers(digits.device)).sum(1)] = torch.arange(len(digits))
    return entries.to(device)
