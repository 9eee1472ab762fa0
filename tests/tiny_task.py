"""A task of a few microseconds for tests of the trainer: which of four corners a point is nearest to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.runtime.determinism import seeded
from rhoc.runtime.events import Event, Saved
from rhoc.runtime.function_task import FunctionTask
from rhoc.runtime.train import TrainSettings

SETTINGS = TrainSettings(tokens=10 * 12, learning_rate=0.01, eval_every=4, seed=3)
"""Ten steps of twelve examples."""


def points(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Points of eight numbers [count, 8], and the class of each."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(4, 8, generator=torch.Generator().manual_seed(99))
    x = torch.randn(count, 8, generator=generator)
    return x, torch.cdist(x, corners).argmin(1)


def batch(step: int, seed: int) -> tuple[Tensor, Tensor]:
    return points(1000 * seed + step, 12)


def validation() -> list[tuple[Tensor, Tensor]]:
    return [points(-1, 20), points(-2, 10)]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs(model, batch), batch[1])


def outputs(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    answer: Tensor = model(batch[0])
    return answer


def task(**changed: object) -> FunctionTask:
    """The task, with some of its functions in the place of others."""
    found = {"batch": batch, "validation": validation, "loss": loss, "outputs": outputs}
    return FunctionTask(found | changed, "tiny_task", "")


def dense() -> nn.Module:
    """Two layers with a bias each, from a fixed seed."""
    with seeded(0):
        return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


def student(spec: str = "int4") -> nn.Module:
    """The trainable form of `dense`."""
    return rhoc.compile(dense(), spec).trainable()


class Interrupted(Exception):
    """What a test raises to stop a run."""


def stop_after(step: int) -> Callable[[Event], None]:
    """Raises once the checkpoint of this step is saved."""

    def listen(event: Event) -> None:
        if isinstance(event, Saved) and event.step == step:
            raise Interrupted

    return listen
