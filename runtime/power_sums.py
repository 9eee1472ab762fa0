"""Sums of few powers of two, and numbers clustered around them: those that draw the most come first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

_DIGITS = 16  # powers from the largest to the smallest one: float32 holds every such sum
_SMALLEST_REACH = 2.0**-20  # of a number that would otherwise reach nothing but itself


@dataclass(frozen=True)
class PowerSums:
    """Numbers that are 0, or plus or minus a sum of at most `max_order` different powers of two, none below
    2^min_exponent nor 2^15 times smaller than the largest."""

    max_order: int
    min_exponent: int

    def lowest(self, largest: float) -> int:
        """The exponent of the smallest power where no number is larger than `largest`, which is positive."""
        return max(self.min_exponent, math.frexp(largest)[1] - _DIGITS)

    def candidates(self, order: int, largest: float) -> Tensor:
        """All such numbers of at most `order` powers and magnitude at most `largest`, float64 ascending."""
        if largest < 2.0**self.min_exponent:
            return torch.zeros(1, dtype=torch.float64)
        lowest = self.lowest(largest)
        digits = math.frexp(largest)[1] - lowest
        sums = _sums(min(order, self.max_order), digits) * 2.0**lowest
        sums = sums[sums <= largest]
        return torch.cat([-sums.flip(0), sums.new_zeros(1), sums])

    def admits(self, numbers: Tensor) -> bool:
        """Whether all numbers are such sums already."""
        largest = float(numbers.abs().max())
        if largest < 2.0**self.min_exponent:
            return largest == 0
        found = self.candidates(self.max_order, largest).to(numbers.device)
        at = torch.searchsorted(found, numbers.double()).clamp_max_(len(found) - 1)
        return bool((found[at] == numbers).all())


@lru_cache(maxsize=64)
def _sums(order: int, digits: int) -> Tensor:
    """The sums of 1 to `order` of the powers 2^0 ... 2^(digits - 1), ascending."""
    whole = {
        sum(1 << d for d in some) for n in range(1, order + 1) for some in combinations(range(digits), n)
    }
    return torch.tensor(sorted(whole), dtype=torch.float64)


@dataclass(frozen=True)
class Joined:
    """Which of some numbers joined a value, that value, and the deviation of the numbers that joined it in
    one go; the latter two are 0 where nothing was joined."""

    chosen: Tensor
    values: Tensor
    deviations: Tensor


def join(numbers: Tensor, reach: Tensor, quota: int, delta: float, sums: PowerSums) -> Joined:
    """Have `quota` of some numbers join values, greedily (Subia-Waud, Dasmahapatra 2309.13575).

    Number i joins c only if |x_i - c| <= delta * reach_i. The value that draws the most numbers is taken
    first, and the closest of them (in units of their reach) join, as many as the quota leaves; then those
    that are left choose again. Once none is drawn, values may have one power more, up to `max_order`, and
    delta is doubled, in turns. Numbers below 2^min_exponent count as 0.

    All tensors are `[n]`; results are float64 and bool.
    """
    x = numbers.double()
    x = torch.where(x.abs() < 2.0**sums.min_exponent, 0.0, x)
    chosen = torch.zeros_like(x, dtype=torch.bool)
    values, deviations = torch.zeros_like(x), torch.zeros_like(x)
    largest = float(x.abs().max()) if len(x) else 0.0
    left = torch.arange(len(x), device=x.device)
    order, grown = 1, 0
    spread = reach.double().clamp_min(_SMALLEST_REACH)
    while quota > 0:
        drawn = _Drawn(x[left], spread[left], delta, sums.candidates(order, largest).to(x))
        while quota > 0 and (found := drawn.most()) is not None:
            value, members = found
            members = members[:quota]
            at = left[members]
            chosen[at], values[at] = True, value
            deviations[at] = numbers.double()[at].std(correction=0)
            quota -= len(members)
            drawn.remove(members)
        left = left[~chosen[left]]
        if order < sums.max_order and grown % 2 == 0:
            order += 1
        else:
            delta *= 2
        grown += 1
    return Joined(chosen, values, deviations)


class _Drawn:
    """Numbers, and the candidates that each is within reach of: a range of them, since they are in order."""

    def __init__(self, x: Tensor, reach: Tensor, delta: float, candidates: Tensor) -> None:
        self.x, self.reach, self.candidates = x, reach, candidates
        around = delta * reach
        self.first = torch.searchsorted(candidates, x - around)
        self.end = torch.searchsorted(candidates, x + around, right=True)
        self.counts = self._counted(self.first, self.end)

    def most(self) -> tuple[float, Tensor] | None:
        """The candidate that draws the most numbers, and their indices, the closest first; None if none."""
        count, at = self.counts.max(0)
        if not count:
            return None
        value = self.candidates[at]
        members = ((self.first <= at) & (at < self.end)).nonzero().squeeze(1)
        distance = (self.x[members] - value).abs() / self.reach[members]
        return float(value), members[distance.sort(stable=True).indices]

    def remove(self, members: Tensor) -> None:
        """Leave numbers out from now on."""
        self.counts -= self._counted(self.first[members], self.end[members])
        self.first[members] = self.end[members] = len(self.candidates)

    def _counted(self, first: Tensor, end: Tensor) -> Tensor:
        """How many of some ranges each candidate is in."""
        size = len(self.candidates) + 1
        edges = torch.bincount(first, minlength=size) - torch.bincount(end, minlength=size)
        return edges.cumsum(0)[:-1]
