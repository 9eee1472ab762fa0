"""A whole training step of a small language model, forward, backward and AdamW, by representation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from timing import Case, Method
from torch import nn

import rhoc
from rhoc.runtime.llama import llama

SPECS = ("int4", "int4-a4", "2of4-int4", "sparse50-int4")


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Widths of the demo's sweep on a CPU; on CUDA one more that fills the device."""
    widths = (32,) if quick else (64, 1024) if device == "cuda" else (32, 64)
    for width in widths:
        torch.manual_seed(0)
        model = llama(width).to(device)
        tokens = torch.randint(0, 256, (64 if width > 64 else 16, 129), device=device)
        methods = {"dense": _step(model, tokens)}
        for spec in SPECS:
            methods[spec] = _step(rhoc.compile(model, spec).trainable(), tokens)
        size = f"{tokens.shape[0]} x {tokens.shape[1] - 1} tokens"
        yield Case(f"llama(width={width}) float32, {size}", methods, capture=False)


def _step(model: nn.Module, tokens: torch.Tensor) -> Method:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run(call: int) -> None:
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
