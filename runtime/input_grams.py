"""Second moments of inputs, taken while a model runs, and the directions that inputs have most of."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .input_rows import InputRows
from .stages.precision import wide


@final
class InputGram(nn.Module):
    """Hands on the input of an operation as it is, and adds up its second moments in train() while it is told
    to. No parameters, no buffers: what was added up is taken in the same step.

    `rows` says how inputs are rows, `block` how many neighbours have moments together; None for all.
    """

    def __init__(self, rows: InputRows, block: int | None) -> None:
        super().__init__()
        self.rows, self.block = rows, block
        self.watching = False
        self.total: Tensor | None = None

    def watch(self, watching: bool) -> None:
        """Begin anew from now on, or stop."""
        self.watching, self.total = watching, None

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        if self.watching and self.training and torch.is_grad_enabled():
            moments = block_moments(self.rows.of(x.detach()), self.block)
            self.total = moments if self.total is None else self.total + moments
        return x


def block_moments(rows: Tensor, block: int | None) -> Tensor:
    """The sum of x x^T of rows `[..., rows, in]`: `[..., blocks, block, block]` in float32 at least, the last
    block filled up with zeros."""
    size = rows.shape[-1]
    block = size if block is None else min(block, size)
    x = F.pad(rows.to(wide(rows.dtype)), (0, -size % block))
    x = x.reshape(*x.shape[:-1], -1, block).movedim(-2, -3)  # [..., blocks, rows, block]
    return x.mT @ x


def leading_directions(moments: Tensor, size: int, count: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues: `[..., size, count]`, orthonormal columns in float64.

    `moments` are those of `block_moments` for `size` inputs; eigenvectors of all blocks count together.
    """
    blocks, block = moments.shape[-3:-1]
    values, vectors = torch.linalg.eigh(moments.double())
    chosen = values.flatten(-2).argsort(dim=-1, descending=True, stable=True)[..., :count]
    columns = vectors.mT.flatten(-3, -2)  # [..., blocks * block, block]
    own = columns.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, block))
    at = (chosen // block).unsqueeze(-1) == torch.arange(blocks, device=chosen.device)
    placed = at.unsqueeze(-1) * own.unsqueeze(-2)  # [..., count, blocks, block]
    found: Tensor = placed.flatten(-2)[..., :size].mT.contiguous()
    return found
