"""A tiny diffusion model of digits: a task for `rhoc train --task`, and models for it in the same file.

Denoising diffusion (Ho et al., arXiv 2006.11239) with 50 steps on the 1797 images [64] that scikit-learn
carries, 1400 to train on and 397 to measure. A model is given noised images and their time steps and says
what the noise was; its loss is the mean squared error of that, over images and all time steps.

    rhoc train dense --model diffusion_task.py:denoiser --task diffusion_task.py --tokens 128000 \
        --learning-rate 0.002 --weight-decay 0
"""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

TIMES, WIDTH, BATCH, TRAINED_ON = 50, 192, 128, 1400
STEPS, RATE = 3000, 2e-3  # of the dense model that `trained` gives
unit, loss_unit = "images", "squared error of the noise"
_CALIBRATED_BY = 20  # images for each time step
_MEASURED_BY = 4  # times that each held-out image is noised

Batch = tuple[Tensor, Tensor, Tensor]
"""Noised images [B, 64], their time steps [B], and the noise in them [B, 64]."""


@cache
def _digits() -> Tensor:
    """Pixels between -1 and 1, by one permutation."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(images).float()[order] / 8 - 1


@cache
def kept() -> Tensor:
    """How much of an image's variance is left at each time step: [50]. Betas rise linearly to 0.2, as far
    as 1000 steps of 0.0001 to 0.02 go in all."""
    return torch.cumprod(1 - torch.linspace(1e-3, 0.2, TIMES), 0)


def noised(images: Tensor, times: Tensor, generator: torch.Generator) -> Batch:
    """Images as they are at their time steps."""
    noise = torch.randn(images.shape, generator=generator)
    share = kept()[times][:, None]
    return share.sqrt() * images + (1 - share).sqrt() * noise, times, noise


def batch(step: int, seed: int) -> Batch:
    """Images and time steps drawn at random."""
    generator = torch.Generator().manual_seed(1_000_000 * seed + step)
    drawn = torch.randint(TRAINED_ON, (BATCH,), generator=generator)
    return noised(_digits()[drawn], torch.randint(TIMES, (BATCH,), generator=generator), generator)


@cache
def _validation() -> tuple[Batch, ...]:
    held_out, generator = _digits()[TRAINED_ON:], torch.Generator().manual_seed(0)
    images = held_out.repeat(_MEASURED_BY, 1)
    times = torch.arange(len(images)) % TIMES
    return (noised(images, times, generator),)


def validation() -> list[Batch]:
    """Every image that is not trained on, four times, at time steps in turn."""
    return list(_validation())


def outputs(model: nn.Module, batch: Batch) -> Tensor:
    """The noise that a model sees: [B, 64]."""
    noise: Tensor = model(batch[0], batch[1])
    return noise


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the noise."""
    return F.mse_loss(outputs(model, batch), batch[2])


def inputs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Noised images and their time steps."""
    return batch[0], batch[1]


class TimedNorm(nn.Module):
    """A layer norm before which the time is added, and after which it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.norm = nn.Embedding(TIMES, WIDTH), nn.LayerNorm(WIDTH)
        self.scale = nn.Embedding.from_pretrained(torch.ones(TIMES, WIDTH), freeze=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, 192] and time steps [B] to [B, 192]."""
        return self.norm(x + self.shift(t)) * self.scale(t)


class Block(nn.Module):
    """A norm with the time, two layers, added back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = TimedNorm()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, 192] and time steps [B] to [B, 192]."""
        return x + self.down(torch.relu(self.up(self.norm(x, t))))


class Denoiser(nn.Module):
    """Three residual blocks between a layer in and a layer out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = TimedNorm()
        self.leave = nn.Linear(WIDTH, 64)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noised images [B, 64] and time steps [B] to the noise [B, 64]."""
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, t)
        return self.leave(self.norm(x, t))

    def example_inputs(self) -> tuple[Tensor, Tensor]:
        """Twenty training images at each time step: what passes look at."""
        generator = torch.Generator().manual_seed(1)
        times = torch.arange(TIMES).repeat_interleave(_CALIBRATED_BY)
        drawn = torch.randint(TRAINED_ON, (len(times),), generator=generator)
        images, times, _ = noised(_digits()[drawn], times, generator)
        return images, times


def denoiser() -> Denoiser:
    """A model from whatever seed torch has."""
    return Denoiser()


@cache
def _trained(steps: int, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        model = Denoiser()
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            optimizer.zero_grad()
            loss(model, batch(step, seed)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.state_dict()


def trained(steps: int = STEPS, seed: int = 0) -> Denoiser:
    """A dense model trained with Adam; the same every time, trained once in a process."""
    model = Denoiser()
    model.load_state_dict(_trained(steps, seed))
    return model.eval()
