"""Patches of photographs: a task for `rhoc train --task`, and an autoencoder for it in the same file.

The two photos that scikit-learn carries (reading them needs Pillow), in grey, cut into 8480 patches of 8 by 8:
85 % to train on, the others to measure, by one permutation. The model gives a patch back through 16 numbers,
which a spec turns into codes; its loss is the mean squared error of a pixel.

    rhoc train systems/mcquic --model patches_task.py:autoencoder --task patches_task.py --tokens 512000 \
        --optimizer adam --learning-rate 0.002 --weight-decay 0
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.runtime.codec import codecs, compress

SIDE, LATENT, HIDDEN, BATCH, TRAINED_ON = 8, 16, 128, 256, 7208
unit, loss_unit = "patches", "squared error of a pixel"

Batch = tuple[Tensor]
"""Patches [B, 64] between 0 and 1."""


@cache
def patches() -> Tensor:
    """All patches [8480, 64]."""
    found = []
    for image in load_sample_images().images:
        grey = torch.from_numpy(image.copy()).float().mean(-1) / 255
        height, width = (size // SIDE * SIDE for size in grey.shape)
        found.append(grey[:height, :width].unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE).reshape(-1, SIDE**2))
    every = torch.cat(found)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]


def batch(step: int, seed: int) -> Batch:
    """Patches drawn at random, with replacement."""
    generator = torch.Generator().manual_seed(1_000_000 * seed + step)
    return (patches()[torch.randint(TRAINED_ON, (BATCH,), generator=generator)],)


def validation() -> list[Batch]:
    """Every patch that is not trained on, in one batch."""
    return [(patches()[TRAINED_ON:],)]


def inputs(batch: Batch) -> Batch:
    """What the model is called with."""
    return batch


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of a pixel."""
    return F.mse_loss(model(batch[0]), batch[0])


def metrics(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Peak signal to noise ratio in decibels, of pixels between 0 and 1; of a packed model with a codec the bits
    of a pixel besides, nominal ones and those of the bytes that the patches become."""
    error = F.mse_loss(model(batch[0]).clamp(0, 1), batch[0])
    found = {"psnr": float(-10 * torch.log10(error))}
    for codec in codecs(model).values():
        found["nominal_bits"] = codec.bits / SIDE**2
        found["coded_bits"] = 8 * len(compress(model, batch[0])) / batch[0].numel()
    return found


def autoencoder() -> nn.Module:
    """64-128-16-128-64: what comes out of `bottleneck` is all that the decoder sees."""
    return nn.Sequential(
        OrderedDict(
            encoder=nn.Sequential(nn.Linear(SIDE**2, HIDDEN), nn.ReLU()),
            bottleneck=nn.Linear(HIDDEN, LATENT),
            decoder=nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, SIDE**2)),
        )
    )
