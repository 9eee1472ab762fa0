"""Runs on the patches task for tests: an autoencoder from a seed under codebooks, trained, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.task_reference import TaskReference
from rhoc.runtime.codec import Codec, codecs
from rhoc.runtime.determinism import seeded
from rhoc.runtime.optimizer_choice import OptimizerChoice
from rhoc.runtime.tasks import Task
from rhoc.runtime.train import TrainSettings, train

from .bench import patches_task

PIXELS = patches_task.SIDE**2


@dataclass(frozen=True)
class Measured:
    """Peak signal to noise ratio on held-out patches in decibels; bits for a pixel, nominal, as the entropy of
    the codes of all patches, and as the bytes that they become; the share of vectors that training patches
    have as their nearest."""

    psnr: float
    nominal: float
    entropy: float
    coded: float
    usage: float
    vectors: int


def model(seed: int) -> nn.Module:
    """The autoencoder, its weights from a seed."""
    with seeded(seed):
        return patches_task.autoencoder()


def compiled(codebooks: Any, estimator: Any, seed: int = 0) -> Compiled:
    """The autoencoder with the encoder's outputs encoded."""
    rule = {
        "targets": ["bottleneck"],
        "weights": "dense",
        "output_activations": codebooks,
        "estimator": {"output_activations": estimator},
    }
    return rhoc.compile(model(seed), {"version": 1, "rules": [rule]})


def fit(made: Compiled, steps: int, seed: int, **options: Any) -> nn.Module:
    """The trainable form after so many steps of Adam at a constant rate."""
    student = made.trainable()
    settings = {
        "optimizer": OptimizerChoice("adam"),
        "learning_rate": 2e-3,
        "learning_rate_schedule": "constant",
        "weight_decay": 0.0,
        "warmup_fraction": 0.0,
    }
    tokens = steps * patches_task.BATCH
    train(student, task(), TrainSettings(tokens=tokens, seed=seed, **settings), **options)
    return student


def task() -> Task:
    """Patches of photographs."""
    return TaskReference(patches_task.__file__).build()


def codec_of(packed: nn.Module) -> Codec:
    """The one codec of a packed model."""
    (codec,) = codecs(packed).values()
    return codec


@torch.no_grad()
def measured(packed: Any) -> Measured:
    """What a packed autoencoder does, from the bytes on: codes are read back before they are decoded."""
    codec, every = codec_of(packed), patches_task.patches()
    latent = latents(packed, every)
    data = codec.compress(latent)
    codes, _ = codec.from_bytes(data)
    trained, held = codes[: patches_task.TRAINED_ON], every[patches_task.TRAINED_ON :]
    restored = packed.decoder(codec.decompress(data))[patches_task.TRAINED_ON :].clamp(0, 1)
    counts = [
        torch.bincount(c, minlength=1 << b) for c, b in zip(codes.T, codec.levels.alphabets, strict=True)
    ]
    seen = [
        torch.bincount(c, minlength=1 << b) for c, b in zip(trained.T, codec.levels.alphabets, strict=True)
    ]
    return Measured(
        psnr=-10 * math.log10(float((restored.double() - held).square().mean())),
        nominal=codec.bits / PIXELS,
        entropy=sum(map(_entropy, counts)) / PIXELS,
        coded=8 * len(data) / len(every) / PIXELS,
        usage=float((torch.cat(seen) > 0).double().mean()),
        vectors=sum(1 << bits for bits in codec.levels.alphabets),
    )


def latents(form: Any, images: Tensor) -> Tensor:
    """What the encoder gives before it is encoded, by its own weights."""
    state: Mapping[str, Tensor] = form.state_dict()
    hidden = F.linear(images, state["encoder.0.weight"], state["encoder.0.bias"]).relu()
    found = F.linear(hidden, state["bottleneck.weight"], state["bottleneck.bias"])
    return found


def _entropy(counts: Tensor) -> float:
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
