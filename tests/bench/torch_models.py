"""Torch's own modules, and weights that are used by functions rather than modules."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from architectures import Case, noise, tokens
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

Make = Callable[[], nn.Module]


def floats(*before: int, width: int = 16, name: str = "input") -> Callable[[int, int], dict[str, Any]]:
    """[batch, length, width] under a name; with `before`, sizes between batch and length."""
    return lambda batch, length: {name: noise(batch, *before, length, width)}


def _channels(rank: int) -> Callable[[int, int], dict[str, Any]]:
    return lambda batch, length: {"input": noise(batch, 8, *[length] * rank)}


def _attention(batch: int, length: int) -> dict[str, Any]:
    return {name: noise(batch, length, 16, seed=i) for i, name in enumerate(("query", "key", "value"))}


def _crossed(batch: int, length: int) -> dict[str, Any]:
    return {"query": noise(batch, length, 16), "key": noise(batch, 5, 12), "value": noise(batch, 5, 20)}


def _two_sided(batch: int, length: int) -> dict[str, Any]:
    return {"src": noise(batch, length, 16), "tgt": noise(batch, length - 2, 16, seed=1)}


def _memory(batch: int, length: int) -> dict[str, Any]:
    return {"tgt": noise(batch, length, 16), "memory": noise(batch, 5, 16, seed=1)}


def _bag(batch: int, length: int) -> dict[str, Any]:
    return {"input": tokens(batch, length)}


def _couple(batch: int, length: int) -> dict[str, Any]:
    return {"input1": noise(batch, length, 16), "input2": noise(batch, length, 12, seed=1)}


def _cell(batch: int, length: int) -> dict[str, Any]:
    return {"input": noise(batch, 16)}


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():  # it is deprecated, and in use
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(16, 24))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Parameters that functions read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(noise(24, 16, seed=3) / 4)
        self.second = nn.Parameter(noise(24, 20, seed=4) / 5)
        self.third = nn.Parameter(noise(20, 4, 6, seed=5) / 5)

    def forward(self, input: Tensor) -> Tensor:
        """linear, matmul, einsum."""
        hidden = F.linear(input, self.first).relu() @ self.second
        return torch.einsum("bti,ihd->bthd", hidden, self.third)


class Experts(nn.Module):
    """Four experts in one tensor, each looked up for the tokens that choose it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.up = nn.Parameter(noise(4, 16, 32, seed=3) / 4)
        self.down = nn.Parameter(noise(4, 32, 16, seed=4) / 6)

    def forward(self, input: Tensor) -> Tensor:
        """Top-1 routing."""
        flat = input.flatten(0, 1)
        share, chosen = self.router(flat).softmax(-1).max(-1)
        result = torch.zeros_like(flat)
        for index in range(4):
            (rows,) = torch.where(chosen == index)
            inner = F.silu(flat[rows] @ self.up[index]) @ self.down[index]
            result = result.index_add(0, rows, inner * share[rows, None])
        return result.view_as(input)


class BatchedExperts(nn.Module):
    """Every expert on every token, as one batched product."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(noise(4, 16, 32, seed=3) / 4)
        self.down = nn.Parameter(noise(4, 32, 16, seed=4) / 6)

    def forward(self, input: Tensor) -> Tensor:
        """The mean over experts."""
        flat = input.flatten(0, 1).expand(4, -1, -1)
        return torch.bmm(torch.bmm(flat, self.up).relu(), self.down).mean(0).view_as(input)


class Tied(nn.Module):
    """An embedding that is the last layer too, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 16)
        self.middle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 128, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input: Tensor) -> Tensor:
        """Logits."""
        hidden = self.middle(self.embedding(input)).relu()
        logits: Tensor = self.head(self.middle(hidden))
        return logits


class Cells(nn.Module):
    """A recurrence written out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(16, 12)
        self.gated = nn.GRUCell(12, 10)
        self.plain = nn.RNNCell(10, 8)

    def forward(self, input: Tensor) -> Tensor:
        """The last state."""
        states: Any = (None, None, None)
        for step in input.unbind(1):
            first = self.cell(step, states[0])
            second = self.gated(first[0], states[1])
            states = (first, second, self.plain(second, states[2]))
        last: Tensor = states[2]
        return last


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


_TRANSFORMER: dict[str, Any] = {"dim_feedforward": 32, "batch_first": True}

TORCH: dict[str, tuple[Make, Callable[[int, int], dict[str, Any]]]] = {
    "Transformer": (lambda: nn.Transformer(16, 4, 2, 2, **_TRANSFORMER), _two_sided),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, **_TRANSFORMER), 2),
        floats(name="src"),
    ),
    "TransformerEncoder, norm first": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, norm_first=True, **_TRANSFORMER), 2, enable_nested_tensor=False
        ),
        floats(name="src"),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, **_TRANSFORMER), 2),
        _memory,
    ),
    "LSTM": (lambda: nn.LSTM(16, 12, 2, batch_first=True), floats()),
    "LSTM, both ways, projected": (
        lambda: nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True, proj_size=6),
        floats(),
    ),
    "GRU, both ways": (lambda: nn.GRU(16, 12, 2, batch_first=True, bidirectional=True), floats()),
    "RNN": (lambda: nn.RNN(16, 12, nonlinearity="relu"), floats()),
    "cells": (Cells, floats()),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(16, 4, batch_first=True), _attention),
    "MultiheadAttention, kdim, vdim": (
        lambda: nn.MultiheadAttention(16, 4, kdim=12, vdim=20, dropout=0.1, batch_first=True),
        _crossed,
    ),
    "Linear": (lambda: nn.Linear(16, 24), floats()),
    "Bilinear": (lambda: nn.Bilinear(16, 12, 8), _couple),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(128, 16, mode="mean"), _bag),
    "Conv1d": (lambda: nn.Conv1d(8, 16, 3), _channels(1)),
    "Conv1d, depthwise, circular": (
        lambda: nn.Conv1d(8, 16, 3, padding=1, groups=8, padding_mode="circular"),
        _channels(1),
    ),
    "Conv2d, grouped, strided": (lambda: nn.Conv2d(8, 16, 3, 2, 1, groups=2), _channels(2)),
    "Conv3d, dilated": (lambda: nn.Conv3d(8, 6, 3, dilation=2), _channels(3)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(8, 16, 3, 2), _channels(1)),
    "ConvTranspose2d, grouped": (lambda: nn.ConvTranspose2d(8, 16, 3, 2, groups=4), _channels(2)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(8, 6, 3), _channels(3)),
    "CNN with batch norm and dropout": (_convolutional, _channels(2)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(16, 24)), floats()),
    "weight norm, old": (_old_weight_norm, floats()),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv1d(8, 16, 3)), _channels(1)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(16, 16)), floats()),
    "tied": (Tied, _bag),
    "functional": (Functional, floats()),
    "experts": (Experts, floats()),
    "experts, batched": (BatchedExperts, floats()),
}


def torch_cases() -> Iterator[Case]:
    """One case for each module."""
    for name, (make, inputs) in TORCH.items():
        yield Case(name, "torch", make, inputs)
    yield Case("cell alone", "torch", lambda: nn.LSTMCell(16, 12), _cell)
