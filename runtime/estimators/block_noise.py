"""Block noise: training projects a random part of the numbers, others stay exact (2004.07320)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..view import View
from .base import Estimator


@dataclass(frozen=True)
class BlockNoise(Estimator):
    """Quant-Noise: blocks of numbers are projected with probability p, drawn anew in every forward pass.

    The gradient passes everywhere: dL/dx = dL/dR(x). At p = 0 training is that of the dense tensor (but for
    the rounding of a rotation there and back), at p = 1 that of straight-through. In eval() everything is
    projected.

    `p` is the share of blocks that are projected, on average.
    `block` is the number of neighbours along the last dimension that are drawn together, in the rotated
    domain; the last one of a row may have fewer. Unset means the vectors of a codebook, else single numbers.
    `zero` puts zeros in the place of projections, and multiplies all that stays with 1 / (1 - p).
    """

    p: float = 0.5
    block: int | None = None
    zero: bool = False
    kind: Literal["block_noise"] = "block_noise"

    masks: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be in [0, 1], got {self.p}")
        if self.zero and self.p == 1:
            raise ValueError("p must be below 1 with zero: nothing would stay")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block must be positive, got {self.block}")

    def replaced(self, view: View, generator: torch.Generator) -> Tensor:
        chosen = self._chosen(view, generator)
        if self.zero:
            return torch.where(chosen, 0.0, view.latent) / (1 - self.p)
        return torch.where(chosen, view.projected, view.latent)

    def mask(self, view: View) -> Tensor | None:
        return None

    def _chosen(self, view: View, generator: torch.Generator) -> Tensor:
        """Bool, true for the numbers that are projected."""
        *rows, size = view.latent.shape or (1,)
        block = self.block or _vector(view)
        shape = (*rows, -(-size // block))
        drawn = torch.rand(shape, generator=generator, device=view.latent.device) < self.p
        whole = drawn if block == 1 else drawn.repeat_interleave(block, -1)[..., :size]
        return whole.reshape(view.latent.shape)


def _vector(view: View) -> int:
    """How many neighbours the last stage encodes together."""
    last = view.steps[-1][0].unwrapped[-1] if view.steps else None
    return int(getattr(last, "in_group_size", 1))
