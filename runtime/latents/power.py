"""Powerpropagation: weights as signed powers, so that large ones move faster (2110.00296, Eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .base import Latent


@dataclass(frozen=True)
class Power(Latent):
    """w = sign(theta) |theta|^alpha, and so dL/dtheta = alpha |theta|^(alpha - 1) dL/dw; 0 stays 0.

    `alpha` is at least 1 (1: nothing changes). A theta of zero gets no gradient: weights that start at zero
    stay there.
    """

    alpha: float = 2.0
    kind: Literal["power"] = "power"

    def __post_init__(self) -> None:
        if not self.alpha >= 1:
            raise ValueError(f"alpha must be at least 1, got {self.alpha}")

    def start(self, weight: Tensor) -> Tensor:
        return weight.sign() * weight.abs() ** (1 / self.alpha)

    def weight(self, theta: Tensor) -> Tensor:
        # sign and abs apart: theta |theta|^(alpha - 1) has no derivative at zero for alpha between 1 and 2.
        return theta if self.alpha == 1 else theta.sign() * theta.abs() ** self.alpha
