"""Which token comes next: the most likely one, or one at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RequestError
from ..seeds import derived


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the most likely token; else one is drawn from softmax(logits / temperature), with
    `top_k` among so many of the most likely."""

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < torch.inf:
            raise RequestError(f"the temperature is 0 or more, not {self.temperature}", where="sampling")
        if self.top_k is not None and self.top_k < 1:
            raise RequestError(f"top-k is 1 or more, not {self.top_k}", where="sampling")

    def generators(self, count: int) -> list[torch.Generator]:
        """A source of random numbers for each sequence, the same whatever else is in the batch."""
        return [torch.Generator().manual_seed(derived(self.seed, place)) for place in range(count)]

    def choose(self, logits: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Tokens `[B]` from logits `[B, V]`, on their device."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.double().cpu() / self.temperature
        if self.top_k is not None and self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k).values[:, -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        drawn = [
            torch.multinomial(shares, 1, generator=generator)
            for shares, generator in zip(scaled.softmax(-1), generators, strict=True)
        ]
        return torch.cat(drawn).to(logits.device)
