"""Small models that between them hold everything the compile layer must cope with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.runtime.llama import llama


def mlp() -> nn.Module:
    """A Sequential as the root, with dropout between."""
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8, bias=False))


class Branching(nn.Module):
    """Control flow on data around two linear modules."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Linear(16, 16)
        self.large = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.small(x) if float(x.detach().abs().mean()) < 1 else self.large(x)
        return self.norm(h + self.large(x))


class Tied(nn.Module):
    """One parameter as embedding and as output head, with a hidden layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 24, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(F.gelu(self.hidden(self.embed(tokens)))))


class TiedByHand(nn.Module):
    """The head reads the embedding's weight as an attribute, in a forward that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 16)
        self.hidden = nn.Linear(16, 16)

    def forward(self, tokens: Tensor, scale: float | None = None) -> Tensor:
        h = self.hidden(self.embed(tokens))
        if scale is not None:
            h = h * scale
        return F.linear(h, self.embed.weight)


class Siblings(nn.Module):
    """Three layers that read one input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(12, 8), nn.Linear(12, 20, bias=False), nn.Linear(12, 12)

    @property
    def example_inputs(self) -> tuple[Tensor]:
        return (torch.ones(2, 12),)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.one(x), self.two(x), self.three(x)), -1)


class Functional(nn.Module):
    """A bare parameter in a functional call, another in a plain product, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(16, 16) / 4)
        self.product = nn.Parameter(torch.randn(16, 8) / 4)
        self.unused = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("offset", torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        return (F.linear(x, weight=self.matrix) + self.offset) @ self.product


def transformer_encoder() -> nn.Module:
    """torch's own encoder: no trace, a fused attention, and a fast path that skips its submodules.

    Norms have random weights. With unit weights their outputs sum to zero but for rounding, so the first
    coefficient of a Hadamard block is noise, which a grid without a zero rounds up or down.
    """
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1, 0.25)
    return encoder


@dataclass(frozen=True)
class Case:
    """A model with an input for any batch size, and the classes whose weights can be represented."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The model from a fixed seed."""
        torch.manual_seed(0)
        return self.make().to(dtype)


def floats(*shape: int) -> Callable[[int], Tensor]:
    """Normal numbers `[batch, *shape]` from a fixed seed."""

    def make(batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    return make


def tokens(length: int, vocabulary: int) -> Callable[[int], Tensor]:
    """Token numbers `[batch, length]` from a fixed seed."""

    def make(batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, vocabulary, (batch, length), generator=generator)

    return make


CASES: dict[str, Case] = {
    "llama": Case(lambda: llama(16, vocabulary=32, context=16), tokens(12, 32)),
    "mlp": Case(mlp, floats(16)),
    "branching": Case(Branching, floats(16)),
    "tied": Case(Tied, tokens(6, 24)),
    "tied_by_hand": Case(TiedByHand, tokens(6, 24)),
    "functional": Case(Functional, floats(16)),
    "encoder": Case(transformer_encoder, floats(5, 16)),
}
