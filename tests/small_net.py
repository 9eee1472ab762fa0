"""A network of two layers, numbers for it, and its states while it trains for a few steps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import rhoc


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def trained(
    model: nn.Module,
    numbers: range | None = None,
    *,
    steps: int = 12,
    decay: float = 0.1,
    attached: bool = True,
    run: Callable[[Tensor], Tensor] | None = None,
) -> list[dict[str, Tensor]]:
    """The state of a model after each of these steps, of `steps`, under AdamW; `run` computes its outputs."""
    torch.manual_seed(5)
    numbers = range(steps) if numbers is None else numbers
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2, weight_decay=decay)
    if attached:
        rhoc.attach(model, optimizer, steps, step=numbers.start)
    states = []
    for number in numbers:
        optimizer.zero_grad()
        (run or model)(normal(40, 16, seed=number)).square().mean().backward()
        optimizer.step()
        states.append(copy.deepcopy(dict(model.state_dict())))
    return states
