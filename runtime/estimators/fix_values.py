"""Rounds of training: in each of them more of a network's numbers become values of its palette, and stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..representation import Representation
from ..stages.palette import Palette
from ..view import View
from .base import Estimator
from .gaussian_weights import gaussian_of
from .step_rule import Beside, Stepping, StepRule

if TYPE_CHECKING:
    from ..projection import Project

FIXED, ROUNDS = "fixed", "rounds"
"""What follows the name of a weight, and `_`: which numbers are fixed, and after how many rounds."""


@dataclass(frozen=True)
class FixValues(StepRule):
    """Round by round a larger share of the numbers of all weights under this rule is fixed (2309.13575).

    In a round all of them are clustered anew, together: number i may join a value that is at most delta s_i
    away, where s_i is its deviation under `gaussian` beside this one, and its own magnitude without (weight
    fixing networks, 2210.13554). The value of the palette that draws the most numbers comes first; where
    none draws any, values of one power more are allowed and delta is doubled, in turns. What has joined is
    that value from then on: it gets no gradient, and neither decay nor momentum move it. Its deviation is
    that of the numbers that joined with it. The others train on. Needs `attach(model, optimizer, steps)`.

    `delta` is how far a number may be from its value.
    `shares` are the shares of all numbers that are fixed after each round; the last one is 1.
    `begin` is where the first round is, as a share of the run, and `end` the last; the others lie between, as
    far from each other. At `end` 1 it follows the last step.
    """

    delta: float = 1.0
    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
    begin: float = 0.1
    end: float = 1.0
    kind: Literal["fix_values"] = "fix_values"

    masks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta must be positive, got {self.delta}")
        rising = all(before < after for before, after in pairwise((0.0, *self.shares)))
        if not (self.shares and rising and self.shares[-1] == 1):
            raise ValueError(f"shares rise from above 0 to 1, got {list(self.shares)}")
        if not 0 <= self.begin <= self.end <= 1:
            raise ValueError(f"begin and end are shares of the run, in order, got {self.begin}, {self.end}")

    def check(self, representation: Representation) -> None:
        stages = representation.unwrapped
        if stages and not (len(stages) == 1 and isinstance(stages[0], Palette) and not _own(stages[0])):
            raise ValueError(
                f"{self.kind!r} makes numbers of a network values of its palette, and {representation} is "
                "something else; write palette with scope: network, or use 'ste'"
            )

    def mask(self, view: View) -> Tensor | None:
        return None

    def rounds(self, step: int, steps: int) -> int:
        """How many rounds there are before the 0-based `step` of a run of `steps`."""
        count = len(self.shares)
        ways = [i / max(count - 1, 1) for i in range(count)]
        return sum(step >= (self.begin + (self.end - self.begin) * way) * steps - 1e-9 for way in ways)

    def on(
        self, weight: nn.Parameter, projection: Project, optimizer: torch.optim.Optimizer, beside: Beside
    ) -> Stepping:
        from ..value_fixing import ValueFixing  # knows projections, which know estimators

        return ValueFixing.of(self, weight, projection, beside)

    def joined(self, each: Sequence[Stepping]) -> Sequence[Stepping]:
        from ..value_fixing import ValueFixing

        return [ValueFixing.all_of([one for one in each if isinstance(one, ValueFixing)])]


def fix_values_of(estimators: Sequence[Estimator]) -> FixValues | None:
    """The estimator among these that fixes values, or None."""
    return next((e for e in estimators if isinstance(e, FixValues)), None)


def beside_names(estimators: Sequence[Estimator]) -> tuple[str, ...]:
    """What follows the name of a weight, and `_`, in the names of what Gaussian and fixed weights keep.

    Raises:
        ValueError: another estimator beside these.
    """
    from .gaussian_weights import DEVIATION, GaussianWeights

    own = [e for e in estimators if isinstance(e, GaussianWeights | FixValues)]
    if own and (len(own) < len(estimators) or len({type(e) for e in own}) < len(own)):
        others = ", ".join(e.kind for e in estimators if e is not own[0])
        raise ValueError(f"{own[0].kind!r} says how gradients pass; leave out {others}")
    deviation = (DEVIATION,) if gaussian_of(estimators) is not None else ()
    return (*deviation, FIXED, ROUNDS) if fix_values_of(estimators) is not None else deviation


def _own(palette: Palette) -> bool:
    return palette.scope != "network"
