"""Soft: training sees a mean of levels, the nearer the heavier, and hardens (Agustsson et al. 1704.00648)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..representation import Representation
from ..view import View
from .base import Estimator, bare
from .levels import levels_of, refusal

_LEAST = -80.0
_PIECE, _LARGE_PIECE = 1 << 15, 1 << 26  # weights at a time, on a CPU few enough for its cache


@dataclass(frozen=True)
class Soft(Estimator):
    """S(x) = sum_l w_l l with w_l ~ exp(-|x - l|^2 / (temperature * c^2)) over the levels l.

    c is the distance of the two neighbouring levels that lie farthest apart. The mask is the derivative,
    S'(x) = 2 Var_w(l) / (temperature * c^2), scales and tables taken as constant; its mean from one level to
    the next is one. At low temperatures S is the projection, and S' zero but for spikes where cells meet, as
    high as 1 / (2 temperature). What sparsity zeroes is zero, and its gradient passes. In eval() and in what
    is stored numbers go to the nearest level. Schedule it to harden: estimator.weights.0.temperature.

    `temperature` is the width of weights in units of c^2; 0 is the projection itself.
    `floor` is the share of straight-through in the mask, which is floor + (1 - floor) * S'(x).
    """

    temperature: float = 0.1
    floor: float = 0.0
    kind: Literal["soft"] = "soft"

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number that is not negative, got {self.temperature}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be in [0, 1], got {self.floor}")
        if not self.temperature and not self.floor:
            raise ValueError("at temperature 0 no gradient passes; give a floor, or a small temperature")

    def check(self, representation: Representation) -> None:
        if representation.stages and (why := refusal(representation)):
            raise ValueError(f"'soft' {why}; use 'ste' or 'block_noise'")

    def trained(self, representation: Representation) -> Representation:
        return bare(representation)

    def replaced(self, view: View, generator: torch.Generator) -> Tensor | None:
        levels = levels_of(view)
        if levels is None or not self.temperature:
            return None
        mean, _ = self._moments(levels.scaled(view.handed), levels.values)
        soft = levels.restored(mean)
        for stage, fields in reversed(view.steps[:-1]):
            soft = stage.decode(soft, fields)
        return soft

    def mask(self, view: View) -> Tensor | None:
        if not self.temperature:
            return torch.full_like(view.latent, self.floor)
        levels = levels_of(view)
        if levels is None:
            return None
        _, variance = self._moments(levels.scaled(view.handed), levels.values)
        derivative = variance * (2 / self._width(levels.values))
        return view.placed(self.floor + (1 - self.floor) * derivative, 1.0)

    def _width(self, values: Tensor) -> float:
        return self.temperature * float(values.diff().max()) ** 2

    def _moments(self, numbers: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the levels under their weights, in units of levels.

        They are summed as distances from the nearest level, whose weight is the largest: nothing overflows,
        and the mean is that level exactly once the others weigh nothing.
        """
        borders, width = (values[1:] + values[:-1]) / 2, self._width(values)
        column, flat = values.unsqueeze(-1), numbers.reshape(-1)
        mean, variance = torch.empty_like(flat), torch.empty_like(flat)
        size = max(1, (_PIECE if numbers.is_cpu else _LARGE_PIECE) // len(values))
        for start in range(0, len(flat), size):
            at = slice(start, start + size)
            nearest = values[torch.bucketize(flat[at], borders, out_int32=True)]
            steps = column - nearest
            weights = _exp((2 * (flat[at] - nearest) - steps).mul_(steps).div_(width))  # of the nearest: 1
            total = weights.sum(0)
            first = weights.mul_(steps).sum(0).div_(total)
            second = weights.mul_(steps).sum(0).div_(total)
            torch.add(nearest, first, out=mean[at])
            torch.sub(second, first.square_(), out=variance[at])
        return mean.view(numbers.shape), variance.view(numbers.shape)


def _exp(x: Tensor) -> Tensor:
    """e^x in the place of x, 0 below e^-80: what underflows takes tens of times longer to compute."""
    found = x.clamp_min_(_LEAST).exp_()
    return found.mul_(found > 1.01 * math.exp(_LEAST))
