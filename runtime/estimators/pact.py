"""A learned clipping level (PACT, 1805.06085)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from .learned import Learned


@dataclass(frozen=True)
class Pact(Learned):
    """The end alpha of the grid is trained, and only numbers that it clips have a say (PACT, Eq. 3).

    alpha = s * highest level, and dR/dalpha = 0 inside of the grid and Q(u) / highest level outside: the sign
    of x where the grid is symmetric. The gradient passes inside. PACT was made for activations behind a ReLU
    (`grid: unsigned`); its regulariser, the decay of alpha, is what the optimiser is told to do with the
    parameters called `alpha`.
    """

    kind: Literal["pact"] = "pact"

    parameter: ClassVar[str] = "alpha"

    def step(self, parameter: Tensor, top: float) -> Tensor:
        return parameter / top

    def start(self, step: Tensor, top: float) -> Tensor:
        return step * top

    def slope(self, scaled: Tensor, levels: Tensor, passes: Tensor, top: float) -> Tensor:
        return levels * (1 - passes) / top

    def gradient_factor(self, count: int, top: float) -> float:
        return 1.0
