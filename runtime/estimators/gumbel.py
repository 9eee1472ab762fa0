"""Gumbel-softmax codes: chosen at random near the nearest, with the gradient of the softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .kept_tables import Chosen, KeptTables, squared_distances


@dataclass(frozen=True)
class Gumbel(KeptTables):
    """Vectors are drawn in training from softmax(-tau |x - c|^2), one-hot forward, soft backward.

    The hard Gumbel-softmax estimator (Jang, Gu, Poole, 1611.01144) over codebooks, as McQuic trains them
    (2203.10897): no commitment loss, nothing straight through. tau is learned, one number for each codebook,
    and bounded from below; the softmax has temperature 1. Distances are not scaled by the size of a vector or
    of a table. In eval() the nearest vectors are taken.

    `inverse_temperature` is where tau starts.
    `lowest` is what it does not fall below.
    """

    inverse_temperature: float = 50.0
    lowest: float = 1.0
    kind: Literal["gumbel"] = "gumbel"

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lowest <= self.inverse_temperature:
            raise ValueError(
                f"inverse_temperature must be at least lowest, both above 0, got {self.inverse_temperature} "
                f"and {self.lowest}"
            )

    @property
    def first_temperature(self) -> float:
        return self.inverse_temperature

    def choose(self, x: Tensor, table: Tensor, temperature: Tensor | None) -> Chosen:
        assert temperature is not None
        bounded = temperature + (temperature.clamp_min(self.lowest) - temperature).detach()
        logits = -squared_distances(x, table) * bounded[:, None]
        uniform = torch.rand_like(logits).clamp_min_(torch.finfo(logits.dtype).tiny)
        noised = logits - torch.log(-torch.log(uniform))
        soft = noised.softmax(-1)
        hard = F.one_hot(noised.detach().argmax(-1), table.shape[1]).to(soft.dtype)
        vectors = torch.einsum("ngk,gkd->ngd", hard + (soft - soft.detach()), table)
        return Chosen(logits.detach().argmax(-1), vectors)

    def left(self, x: Tensor, vectors: Tensor) -> Tensor:
        return x - vectors

    def passed(self, x: Tensor, vectors: Tensor) -> Tensor:
        return vectors
