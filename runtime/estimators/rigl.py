"""RigL: a sparse weight drops its smallest connections, and grows those of the largest gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..representation import Representation
from ..view import View
from .step_rule import Beside, Stepping, StepRule

if TYPE_CHECKING:
    from ..projection import Project


@dataclass(frozen=True)
class RigL(StepRule):
    """Connections that are dropped and grown while the weight is trained (Evci et al. 1911.11134, Alg. 1).

    The weight itself is zero where a sparse stage pruned it, so only what is active learns. At every step
    that `every` divides, up to a share `until` of the run, k active numbers of the smallest magnitude are
    dropped, and of all that are not active now, the k with the largest gradient are grown: they start at
    zero, take part in this very step, and their momenta begin anew. k is a share
    fraction / 2 (1 + cos(pi step / (until * steps))) of the active ones. A number that is dropped and grown
    at once keeps its value, as in the authors' code. The first choice is by magnitude. Every weight has the
    sparsity that its stage says (uniform, not ERK). Needs `attach(model, optimizer, steps)`.
    """

    every: int = 100
    fraction: float = 0.3
    until: float = 0.75
    kind: Literal["rigl"] = "rigl"

    masks: ClassVar[bool] = False
    grows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is a number of steps, at least 1, got {self.every}")
        for name in ("fraction", "until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def check(self, representation: Representation) -> None:
        stages = representation.unwrapped
        if stages and (stages[0].kind != "sparsify" or getattr(stages[0], "scores", "") != "magnitude"):
            raise ValueError(
                f"'rigl' needs a chain that begins with sparsify by magnitude, got {representation}; "
                "use 'ste' or 'banded'"
            )

    def mask(self, view: View) -> Tensor | None:
        return None

    def share(self, step: int, steps: int) -> float:
        """The share of active numbers to exchange in a 0-based step; 0 in most."""
        last = self.until * steps
        if step <= 0 or step % self.every or step >= last:
            return 0.0
        return self.fraction / 2 * (1 + math.cos(math.pi * step / last))

    def on(
        self, weight: nn.Parameter, projection: Project, optimizer: torch.optim.Optimizer, beside: Beside
    ) -> Stepping:
        from ..connections import Connections  # knows projections, which know estimators

        return Connections(weight, projection, optimizer, self)
