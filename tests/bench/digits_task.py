"""Handwritten digits: a task for `rhoc train --task`, and models for it in the same file.

The 1797 real images [1, 8, 8] that scikit-learn carries: 1400 to train on, 397 to measure, by one permutation.

    rhoc train int2 --model digits_task.py:mlp --task digits_task.py --tokens 25600 --learning-rate 0.003
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, TRAINED_ON, CLASSES = 64, 1400, 10
unit, loss_unit = "images", "nats per image"

Batch = tuple[Tensor, Tensor]
"""Images [B, 1, 8, 8] between 0 and 1, and the digit of each [B]."""


@cache
def _digits() -> Batch:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(images).float()[order] / 16
    return pixels.view(-1, 1, 8, 8), torch.from_numpy(labels).long()[order]


def batch(step: int, seed: int) -> Batch:
    """Images drawn at random, with replacement."""
    images, labels = _digits()
    generator = torch.Generator().manual_seed(1_000_000 * seed + step)
    drawn = torch.randint(TRAINED_ON, (BATCH,), generator=generator)
    return images[drawn], labels[drawn]


def validation() -> list[Batch]:
    """Every image that is not trained on, in one batch."""
    images, labels = _digits()
    return [(images[TRAINED_ON:], labels[TRAINED_ON:])]


def outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, 10]."""
    logits: Tensor = model(batch[0])
    return logits


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats per image."""
    return F.cross_entropy(outputs(model, batch), batch[1])


def metrics(model: nn.Module, batch: Batch) -> dict[str, float]:
    """The share of images that are seen as what they are."""
    return {"accuracy": float((outputs(model, batch).argmax(-1) == batch[1]).double().mean())}


def inputs(batch: Batch) -> tuple[Tensor]:
    """Images alone."""
    return (batch[0],)


@torch.no_grad()
def predictions(model: nn.Module) -> Tensor:
    """The digit that a model in eval() sees in each held-out image: [397]."""
    ((images, _),) = validation()
    found: Tensor = model(images).argmax(-1)
    return found


def accuracy(predicted: Tensor) -> float:
    """The share of held-out images that are seen as what they are."""
    ((_, labels),) = validation()
    return float((predicted == labels).double().mean())


def mlp() -> nn.Module:
    """Three layers, 64-256-256-10."""
    return nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            first=nn.Linear(64, 256),
            relu1=nn.ReLU(),
            middle=nn.Linear(256, 256),
            relu2=nn.ReLU(),
            last=nn.Linear(256, CLASSES),
        )
    )


def tapered() -> nn.Module:
    """Three layers, 64-300-100-10, from normal weights of variance 1 / inputs cut at two deviations."""
    model = nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            first=nn.Linear(64, 300),
            relu1=nn.ReLU(),
            middle=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            last=nn.Linear(100, CLASSES),
        )
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            deviation = layer.in_features**-0.5
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            nn.init.zeros_(layer.bias)
    return model


def cnn() -> nn.Module:
    """Three convolutions and a head. The first one's 16 inputs are a number that fours and rotations divide."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(1, 16, 4, padding=1),
            relu1=nn.ReLU(),
            middle=nn.Conv2d(16, 32, 3, padding=1, stride=2),
            relu2=nn.ReLU(),
            middle2=nn.Conv2d(32, 32, 3, padding=1),
            relu3=nn.ReLU(),
            flat=nn.Flatten(),
            last=nn.Linear(512, CLASSES),
        )
    )


def compact() -> nn.Module:
    """Three layers, 64-128-128-10."""
    return nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            first=nn.Linear(64, 128),
            relu1=nn.ReLU(),
            middle=nn.Linear(128, 128),
            relu2=nn.ReLU(),
            last=nn.Linear(128, CLASSES),
        )
    )


@cache
def _trained(steps: int) -> dict[str, Tensor]:
    model = compact()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, batch(step, 0)).backward()
        optimizer.step()
    return model.state_dict()


def trained(steps: int = 1500) -> nn.Module:
    """`compact`, dense, after so many steps of Adam; trained once in a process."""
    model = compact()
    model.load_state_dict(_trained(steps))
    return model
