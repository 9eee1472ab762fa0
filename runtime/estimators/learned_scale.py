"""Learned scales: factors of codes that are taken as they are, beside numbers that learn straight through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..stages.quantize import Quantize
from ..view import View
from .learned import Learned


@dataclass(frozen=True)
class LearnedScale(Learned):
    """R(x; s) = s Q(x / s) with dR/ds = Q(u) for a code Q(u) that is given, and dR/dx = 1 everywhere.

    LSQ has gradients pass between the outermost levels alone. Of signs times a scale that would be half of
    all numbers, and the others would never move again: XNOR-Net (1603.05279) and its successors let all of
    them learn. The gradient of a scale is multiplied by 1 / sqrt(count * highest level), as in LSQ
    (1902.08153, section 2.2).
    """

    kind: Literal["learned_scale"] = "learned_scale"

    masks: ClassVar[bool] = False

    def mask(self, view: View) -> Tensor | None:
        return None

    def passes(self, stage: Quantize, scaled: Tensor) -> Tensor:
        return torch.ones_like(scaled)

    def slope(self, scaled: Tensor, levels: Tensor, passes: Tensor, top: float) -> Tensor:
        return levels

    def gradient_factor(self, count: int, top: float) -> float:
        return 1 / math.sqrt(max(count, 1) * top)
