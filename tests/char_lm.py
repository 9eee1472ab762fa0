"""A byte-level language model on the standard library's source, trained in process, for tests of systems."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.runtime.corpus import Corpus, load_corpus
from rhoc.runtime.determinism import seeded
from rhoc.runtime.llama import Llama, LlamaShape
from rhoc.runtime.train import TrainSettings, train

CONTEXT = 64


@cache
def corpus() -> Corpus:
    return load_corpus("stdlib")


@cache
def _held_out(tokens: int) -> Tensor:
    return corpus().evaluation(tokens=tokens, context=CONTEXT)


def untrained(seed: int, width: int = 96, hidden: int = 256) -> Llama:
    """Two layers with heads of 16."""
    with seeded(seed):
        return Llama(LlamaShape(width, 2, width // 16, hidden, 256, CONTEXT))


@cache
def trained(seed: int, width: int = 96, hidden: int = 256, steps: int = 1600, batch: int = 32) -> nn.Module:
    """The model after so many steps."""
    model = untrained(seed, width, hidden)
    settings = TrainSettings(
        tokens=steps * CONTEXT * batch,
        learning_rate=0.004,
        batch_size=batch,
        context=CONTEXT,
        eval_tokens=CONTEXT,
        seed=seed,
    )
    with torch.enable_grad():
        train(model, corpus(), settings)
    return model.eval()


@torch.no_grad()
def nll(model: nn.Module, tokens: int = 65536) -> float:
    """Nats per byte on text that was not trained on."""
    windows = _held_out(tokens)
    total = 0.0
    for part in windows.split(64):
        total += float(
            F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        )
    return total / windows[:, 1:].numel()
