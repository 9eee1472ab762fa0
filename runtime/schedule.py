"""Numbers of a format that change while it is trained: how sparse, how many bits, how wide a band."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .errors import RequestError

Shape = Literal["linear", "cubic", "cosine", "step"]

_ESTIMATOR = "estimator"


@dataclass(frozen=True)
class Address:
    """Where a scheduled number stands: in the stage at a position of a chain, or in the estimator there."""

    in_estimator: bool
    position: int
    name: str


@dataclass(frozen=True)
class Schedule:
    """One number on its way from `start` to the value that the format declares.

    `field` is its address: slot, position and option (`weights.0.sparsity`), or the same of an estimator
    (`estimator.weights.0.p`); inside of one slot the slot is left out. `begin` and `end` are fractions of the
    run: `start` holds before the first, the declared value from the second on. `shape` says how it gets
    there; with s the share of the way: `linear`; `cubic`, declared + (start - declared) (1 - s)^3 (Zhu and
    Gupta, 1710.01878, Eq. 1); `cosine`, with (1 + cos(pi s)) / 2 in the place of the cube; `step`, at once at
    `end`. `every` is the number of steps that a value stays. Whole numbers are rounded.
    """

    field: str
    start: float
    shape: Shape = "linear"
    begin: float = 0.0
    end: float = 1.0
    every: int = 1

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("begin", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction of the run, got {getattr(self, name)}")
        if self.end < self.begin:
            raise ValueError(f"end {self.end} comes before the begin, {self.begin}; exchange them")
        if self.every < 1:
            raise ValueError(f"every is a number of steps, at least 1, got {self.every}")
        if not math.isfinite(self.start):
            raise ValueError(f"start must be a number, got {self.start}")

    @property
    def address(self) -> Address:
        """Its place inside of one slot. Raises ValueError for a field that is none: `position.option`."""
        head, *rest = self.field.split(".")
        in_estimator = head == _ESTIMATOR
        parts = rest if in_estimator else [head, *rest]
        if len(parts) != 2 or not parts[0].isdecimal():
            raise ValueError(
                f"{self.field!r} is no position and option of a chain; write 0.sparsity for the first stage, "
                "estimator.0.p for the first estimator"
            )
        return Address(in_estimator, int(parts[0]), parts[1])

    def inside(self, slot: str) -> Schedule | None:
        """The same with its address inside of a slot; None where it is in another."""
        for prefix, local in ((f"{slot}.", ""), (f"{_ESTIMATOR}.{slot}.", f"{_ESTIMATOR}.")):
            if self.field.startswith(prefix):
                return replace(self, field=local + self.field.removeprefix(prefix))
        return None

    def moved(self, slot: str, by: int) -> Schedule:
        """The same for a chain of this slot that `by` stages were put before (taken from, where negative).

        Raises RequestError when its stage is among those that were taken.
        """
        local = self.inside(slot)
        if local is None or local.address.in_estimator:
            return self
        position = local.address.position + by
        if position < 0:
            raise RequestError(
                f"{self.field} is scheduled, and the stage was folded into the weights around it",
                where="schedule",
                advice="leave out the schedule, or the pass fold_rotations",
            )
        return replace(self, field=f"{slot}.{position}.{local.address.name}")

    def value(self, declared: float, step: int, steps: int) -> float:
        """The value for the 0-based `step` of a run of `steps`; from step `steps` on the declared one."""
        done = (step - step % self.every) / max(steps, 1)
        if done >= self.end or step >= steps:
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
        return self.between(declared, left)

    def between(self, declared: float, left: float) -> float:
        """The value with a share `left` of the way to go, never beyond its ends."""
        value = declared + (self.start - declared) * left
        return min(max(value, min(self.start, declared)), max(self.start, declared))

    def __str__(self) -> str:
        """In words: `weights.0.sparsity from 0 (cubic, 0.25 to 0.75 of training)`."""
        return (
            f"{self.field} from {self.start:g} ({self.shape}, {self.begin:.3g} to {self.end:.3g} of training)"
        )
