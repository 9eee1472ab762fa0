"""Weights that are Gaussian: a mean and a deviation for each number, both trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..representation import Representation
from ..view import View
from .base import Estimator

DEVIATION = "deviation"
"""What follows the name of a weight, and `_`, in the name of its deviations."""


@dataclass(frozen=True)
class GaussianWeights(Estimator):
    """Training sees w + max(s, floor) e, with e ~ N(0, 1) drawn anew every time; s is trained as w is.

    A deviation s of its own for each number says how little that number matters: the loss shrinks s where
    noise hurts (Subia-Waud, Dasmahapatra 2309.13575). dL/dw = dL/dR, dL/ds = e dL/dR, and `pull_rate` is
    taken off the latter wherever s is below `ceiling`, in each backward pass: that is the paper's loss
    pull_rate * sum relu(ceiling - s); the authors' code scales the edit by the distance and the noise. In
    eval() numbers are projected truly. Deviations lie beside the weight, `weight_deviation` in `state_dict`.

    `start` is what the third quartile of deviations is at first, at most `ceiling`. They are proportional to
    the product of the relative distances to the next powers of two, below and above.
    `floor` is the least deviation that is drawn with.
    """

    start: float = 0.0025
    ceiling: float = 0.05
    pull_rate: float = 2.0**-11
    floor: float = 2.0**-30
    kind: Literal["gaussian"] = "gaussian"

    masks: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.start <= self.ceiling < math.inf:
            raise ValueError(
                f"deviations need 0 < floor <= start <= ceiling, got {self.floor}, {self.start}, "
                f"{self.ceiling}"
            )
        if not 0 <= self.pull_rate < math.inf:
            raise ValueError(f"pull_rate must be a number that is not negative, got {self.pull_rate}")

    def check(self, representation: Representation) -> None:
        if representation.rotation.stages:
            raise ValueError(
                f"{self.kind!r} has a deviation for each number of a weight, and {representation} rotates "
                "them; use 'noise'"
            )

    def mask(self, view: View) -> Tensor | None:
        return None

    def first(self, weight: Tensor) -> Tensor:
        """The deviations that a weight starts with, of its shape, in float32 at least.

        Exact powers of two and zeros start at `floor`, and so does all where the quartile is 0.
        """
        size = weight.detach().abs().double()
        below = torch.exp2(torch.frexp(size).exponent.double() - 1)
        share = (size - below) * (2 * below - size) / size.square()
        share = torch.where(size > 0, share, 0.0)
        flat = share.flatten()
        quartile = flat.kthvalue(math.ceil(0.75 * len(flat))).values if len(flat) else flat.sum()
        scaled = self.start * share / quartile if quartile > 0 else torch.zeros_like(share)
        return scaled.clamp(self.floor, self.ceiling).to(torch.promote_types(weight.dtype, torch.float32))


def gaussian_of(estimators: Sequence[Estimator]) -> GaussianWeights | None:
    """The estimator among these that makes weights Gaussian, or None."""
    return next((e for e in estimators if isinstance(e, GaussianWeights)), None)
