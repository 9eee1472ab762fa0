"""Numbers of a format that change while it is trained: how sparse, how many bits, how wide a band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

Shape = Literal["linear", "cubic", "cosine", "step"]


@dataclass(frozen=True)
class Schedule:
    """One number on its way from `start` to the value that the format declares.

    `field` is its address: slot, position and option (`weights.0.sparsity`), or the same of an estimator
    (`estimator.weights.0.p`); inside of one slot the slot is left out. `begin` and `end` are fractions of the
    run: `start` holds before the first, the declared value from the second on. `shape` says how it gets there;
    with s the share of the way: `linear`; `cubic`, declared + (start - declared) (1 - s)^3 (Zhu and Gupta,
    1710.01878, Eq. 1); `cosine`, with (1 + cos(pi s)) / 2 in the place of the cube; `step`, at once at `end`.
    `every` is the number of steps that a value stays. Whole numbers are rounded.
    """

    field: str
    start: float
    shape: Shape = "linear"
    begin: float = 0.0
    end: float = 1.0
    every: int = 1

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= 1 or not 0 <= self.end <= 1:
            raise ValueError(f"begin and end are fractions of the run, got {self.begin} and {self.end}")
        if self.end < self.begin:
            raise ValueError(f"the schedule ends at {self.end}, before it begins at {self.begin}")
        if self.every < 1:
            raise ValueError(f"every is a number of steps, at least 1, got {self.every}")
        if not math.isfinite(self.start):
            raise ValueError(f"start must be a number, got {self.start}")

    def value(self, declared: float, step: int, steps: int) -> float:
        """The value for the 0-based `step` of a run of `steps`."""
        done = (step - step % self.every) / max(steps, 1)
        if done >= self.end:
            return declared
        if done <= self.begin:
            return self.start
        share = (done - self.begin) / (self.end - self.begin)
        left = {
            "linear": 1 - share,
            "cubic": (1 - share) ** 3,
            "cosine": (1 + math.cos(math.pi * share)) / 2,
            "step": 1.0,
        }[self.shape]
        return declared + (self.start - declared) * left
