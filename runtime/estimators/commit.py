"""Nearest vectors, straight through, with a commitment loss: how VQ-VAE trains its codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from .kept_tables import Chosen, KeptTables, squared_distances


@dataclass(frozen=True)
class Commit(KeptTables):
    """The nearest vectors are taken, and gradients pass to the activation as if nothing had happened.

    Two terms are added to whatever is minimised (van den Oord et al., 1711.00937, Eq. 3): the mean squared
    distance of vectors to what they stand for, which trains tables, and `weight` times the same for the
    activation, which keeps it near its vectors.

    `weight` is what the distance counts for the activation.
    """

    weight: float = 0.25
    kind: Literal["commit"] = "commit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")

    def choose(self, x: Tensor, table: Tensor, temperature: Tensor | None) -> Chosen:
        codes = squared_distances(x.detach(), table.detach()).argmin(-1)
        one_of_each = codes[..., None].expand(-1, -1, table.shape[2])
        vectors = table.gather(1, one_of_each.transpose(0, 1)).transpose(0, 1)
        apart = F.mse_loss(vectors, x.detach())
        return Chosen(codes, vectors.detach(), apart + self.weight * F.mse_loss(x, vectors.detach()))

    def left(self, x: Tensor, vectors: Tensor) -> Tensor:
        return x - vectors

    def passed(self, x: Tensor, vectors: Tensor) -> Tensor:
        return x + (vectors - x).detach()
