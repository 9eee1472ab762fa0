"""The learning rate of each step of a run: a linear rise to the peak, and what follows it.

Steps are counted from 0, and s = step + 1 below; w are the steps of the rise. Whatever follows, a rise ends
on the peak at s = w, and a decay ends on `final_fraction` of the peak on the last step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

SCHEDULES = ("cosine", "wsd", "constant")
DECAY_SHAPES = ("linear", "sqrt")


@dataclass(frozen=True)
class LearningRate(ABC):
    """Learning rate by step: `peak` * s / w while s <= w, then as each kind has it."""

    peak: float
    steps: int
    warmup_fraction: float = 0.1
    final_fraction: float = 0.1

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear rise; the peak is reached on the last of them."""
        return round(self.warmup_fraction * self.steps)

    def __call__(self, step: int) -> float:
        """The rate of the 0-based `step`."""
        number, warm = step + 1, self.warmup_steps
        return self.peak * number / warm if number <= warm else self._after(number)

    @abstractmethod
    def _after(self, number: int) -> float:
        """The rate of the step of this 1-based number, after the rise."""


@final
@dataclass(frozen=True)
class Cosine(LearningRate):
    """Half a cosine down to a fraction of the peak, over all steps that the rise leaves.

    floor + (peak - floor) * (1 + cos(pi * (s - w) / (steps - w))) / 2 with floor = final_fraction * peak
    (Loshchilov and Hutter, 1608.03983, Eq. 5, without restarts).
    """

    def _after(self, number: int) -> float:
        warm, floor = self.warmup_steps, self.peak * self.final_fraction
        return (
            floor + (self.peak - floor) * (1 + math.cos(math.pi * (number - warm) / (self.steps - warm))) / 2
        )


@final
@dataclass(frozen=True)
class WarmupStableDecay(LearningRate):
    """The peak until the last `decay_fraction` of the steps, then down to a fraction of the peak.

    With x from 0 to 1 the share of the decay that is done, the rate falls by 1 - x (`linear`) or by
    1 - sqrt(x) (`sqrt`; Hägele et al., 2405.18392, section 3).
    """

    decay_fraction: float = 0.2
    decay_shape: str = "linear"

    @property
    def decay_steps(self) -> int:
        """Steps of the decay; rounding never makes it begin before the rise ends."""
        return min(round(self.decay_fraction * self.steps), self.steps - self.warmup_steps)

    def _after(self, number: int) -> float:
        into = number - (self.steps - self.decay_steps)
        if into <= 0:
            return self.peak
        done = into / self.decay_steps
        left = 1 - done if self.decay_shape == "linear" else 1 - math.sqrt(done)
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * left)


@final
@dataclass(frozen=True)
class Constant(LearningRate):
    """The peak to the end; `final_fraction` says nothing."""

    def _after(self, number: int) -> float:
        return self.peak
