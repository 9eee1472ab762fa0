"""The contract of learned step sizes: the distance of levels is a parameter, with a gradient of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..representation import Representation
from ..stages.quantize import Quantize
from ..view import View
from .base import Estimator

_STRATEGIES = ("tensor", "channel", "group", "block")
_OTHERWISE = "use 'ste' or 'trust'"


class Learned(Estimator):
    """How a tensor is trained together with the steps of its grid: R(x; s) = s Q(x / s) for a grid Q.

    With u = x / s in the rotated domain, and inside = lowest level < u < highest level, the gradient passes
    inside. A number is on the edge when u is the last level, and counts as outside. `slope` is
    dR/d(parameter) at every number; the parameter's gradient is the sum of `slope` times dL/dR over the
    numbers that share a step, times `gradient_factor`. Steps start as the observer measures them: at once for
    weights, at the first tensor seen in training for inputs, which are measured like any tensor until then.
    Where no parameter is (outside of a trainable form), steps are measured and only the mask is left.
    """

    parameter: ClassVar[str] = "step"
    """What is learned: it follows the name of the weight in `state_dict`."""

    moves: ClassVar[bool] = False
    """Whether the grid of inputs has a learned offset besides: R(x) = s Q((x - b) / s) + b."""

    def check(self, representation: Representation) -> None:
        if representation.stages and (why := self._refusal(representation)):
            raise ValueError(f"{self.kind!r} {why}; {_OTHERWISE}")

    def _refusal(self, representation: Representation) -> str:
        """Why it means nothing for a representation, '' where it does."""
        core = representation.core.stages
        if len(core) != 1 or not isinstance(core[0], Quantize):
            return f"learns the step of one grid behind rotations, and {representation} is something else"
        stage = core[0]
        if not stage.symmetric:
            return f"learns steps without a zero point, and {stage} has one"
        if not stage.plain_scales:
            return f"learns steps that are stored as floats by themselves, and those of {stage} are not"
        if stage.strategy not in _STRATEGIES:
            return f"learns steps that stay the same, and {stage} has one for each token"
        if representation.is_random:
            return (
                f"learns steps of what is rounded alike at every step, and {representation} draws at random"
            )
        if stage.absmax_rule == "signed":
            return f"learns steps above zero, and those of {stage} have signs"
        given = getattr(stage, "step", None) is not None
        return "learns a step, and that of the grid is given" if given else ""

    @staticmethod
    def grid_of(representation: Representation) -> Quantize:
        """The stage whose steps are learned."""
        (stage,) = representation.core.stages
        assert isinstance(stage, Quantize)
        return stage

    def mask(self, view: View) -> Tensor | None:
        ((stage, fields),) = view.steps
        assert isinstance(stage, Quantize)
        scale = stage.steps(fields, tuple(view.latent.shape)).scale.to(view.projected.dtype)
        return self.passes(stage, view.latent / scale)

    def passes(self, stage: Quantize, scaled: Tensor) -> Tensor:
        """1 where the gradient passes of numbers in units of the step, else 0."""
        return inside(stage, scaled)

    def step(self, parameter: Tensor, top: float) -> Tensor:
        """The steps that a parameter stands for; `top` is the highest level."""
        return parameter

    def start(self, step: Tensor, top: float) -> Tensor:
        """The parameter that stands for steps."""
        return step

    def slope(self, scaled: Tensor, levels: Tensor, passes: Tensor, top: float) -> Tensor:
        """dR/d(parameter) at every number: from finite u, Q(u) and `inside`. Q(u) may be overwritten.

        Of a step it is Q(u) - u inside and Q(u) outside, rounding taken as straight-through (LSQ, Eq. 3).
        """
        return levels.addcmul_(passes, scaled, value=-1)

    @abstractmethod
    def gradient_factor(self, count: int, top: float) -> float:
        """What gradients of steps and offsets are multiplied by, for `count` numbers that share a step."""


def inside(stage: Quantize, scaled: Tensor) -> Tensor:
    """1 where numbers in units of the step lie between the outermost levels, 0 on these and beyond."""
    lowest, highest = _within(stage.levels.levels[0], stage.levels.levels[-1], scaled.dtype)
    clamped = scaled.clamp(lowest, highest)
    return torch.eq(clamped, scaled, out=clamped)  # on CPU several times faster than making bools


@lru_cache(maxsize=256)
def _within(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and the largest number of a dtype between two others."""
    ends = torch.tensor((low, high), dtype=dtype)
    lowest, highest = torch.nextafter(ends, ends.flip(0)).tolist()
    return lowest, highest


def learned_of(estimators: Sequence[Estimator]) -> Learned | None:
    """The estimator among these that learns steps, or None.

    Raises:
        ValueError: there are others beside it.
    """
    found = [estimator for estimator in estimators if isinstance(estimator, Learned)]
    besides = [e for e in estimators if not e.apart]
    if found and len(besides) > 1:
        others = ", ".join(e.kind for e in besides if e is not found[0])
        raise ValueError(f"{found[0].kind!r} says alone how gradients pass; leave out {others}")
    return found[0] if found else None
