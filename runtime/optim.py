"""The optimiser of every run: AdamW on matrices and vectors, and a learning rate that warms up and decays.

Everything but the budget is derived, so that runs of different sizes stay comparable: the peak learning rate
from the width of the model, the schedule from the number of steps.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from .errors import RequestError

BETAS = (0.9, 0.95)  # QuEST's setup (papers.md 3.5), as most language models since GPT-3 have them


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then half a cosine down to a fraction of the peak.

    With s = step + 1 and w warm-up steps, the rate is peak * s / w up to s = w, then
    floor + (peak - floor) * (1 + cos(pi * (s - w) / (steps - w))) / 2, so the last step runs at the floor.
    """

    peak: float
    steps: int
    warmup_fraction: float = 0.1
    final_fraction: float = 0.1

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear rise; the peak is reached on the last of them."""
        return round(self.warmup_fraction * self.steps)

    def __call__(self, step: int) -> float:
        """The rate of the 0-based `step`."""
        number, warm = step + 1, self.warmup_steps
        if number <= warm:
            return self.peak * number / warm
        floor = self.peak * self.final_fraction
        return (
            floor + (self.peak - floor) * (1 + math.cos(math.pi * (number - warm) / (self.steps - warm))) / 2
        )


def width_of(model: nn.Module) -> int:
    """The width of a model: the most frequent last dimension of its matrices, the smaller one in a tie."""
    lengths = Counter(parameter.shape[-1] for parameter in model.parameters() if parameter.dim() >= 2)
    if not lengths:
        raise RequestError(
            "the model has no matrix to derive a learning rate from",
            where="learning_rate",
            advice="give learning_rate yourself",
        )
    return min(lengths, key=lambda length: (-lengths[length], length))


def default_learning_rate(width: int) -> float:
    """Peak rate for a decoder of this width: 0.004 * 64 / width."""
    return 0.004 * 64 / width


def adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, decaying matrices (two dimensions and more) only.

    The learning rate is set before each step by the caller. The fused implementation is used: one
    deterministic kernel, the fastest of torch's three.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise RequestError("the model has no trainable parameter", where="model", advice="nothing to train")
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=BETAS, fused=True)
