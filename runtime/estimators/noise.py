"""Noise: training sees the numbers with Gaussian noise as large as the error (2506.01863, finding 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..capacity import by_quadrature
from ..representation import Representation
from ..view import View
from .base import Estimator


@dataclass(frozen=True)
class Noise(Estimator):
    """x + n with n ~ N(0, gmse * mean(x^2)), the mean over a row (the last dimension), in the rotated domain.

    UNIQ (1804.10969) trains so; Quartet's noise has gmse 4^-b, the least that b bits allow. The gradient
    passes everywhere: dL/dx = dL/dR(x). In eval() numbers are projected truly. In a list it replaces what
    estimators before it made of the numbers.

    `gmse` is the error relative to the mean square; unset means the Gaussian error of the representation
    where quadrature knows it, else what the projection of this very tensor loses, row by row.
    """

    gmse: float | None = None
    kind: Literal["noise"] = "noise"

    masks: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gmse is not None and not 0 <= self.gmse < math.inf:
            raise ValueError(f"gmse must be a number that is not negative, got {self.gmse}")

    def check(self, representation: Representation) -> None:
        if representation.stages and self.gmse is None and not representation.lossy:
            raise ValueError(
                f"'noise' is as large as an error, and {representation} makes none; give it a gmse"
            )

    def replaced(self, view: View, generator: torch.Generator) -> Tensor:
        x = view.latent.to(torch.promote_types(view.latent.dtype, torch.float32))
        error = self.gmse if self.gmse is not None else _known(view)
        lost = view.projected - x if error is None else x
        variance = lost.square().mean(-1, keepdim=True) * (1.0 if error is None else error)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x + noise * variance.sqrt()

    def mask(self, view: View) -> Tensor | None:
        return None


def _known(view: View) -> float | None:
    """The Gaussian error of what follows the rotation; None where there is no quadrature for it."""
    found = by_quadrature(Representation(tuple(stage for stage, _ in view.steps)))
    return None if found is None else found.value
