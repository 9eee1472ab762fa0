"""Learning from a teacher: how far a model's outputs are from those of another, beside the task's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import RequestError
from .tasks import Task


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits `[..., classes]` at a temperature T, mean over all but the last.

    Hinton et al. (1503.02531), section 2: T^2 keeps its gradient as large as at T = 1. In float32 or wider.
    """
    wanted, said = (_wide(logits) / temperature for logits in (teacher, student))
    apart = F.kl_div(said.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True)
    return temperature**2 * apart.sum(-1).mean()


@final
@dataclass(frozen=True, eq=False)
class Teacher:
    """A model that is not trained, and how much of the loss is what it says.

    The loss is (1 - weight) * the task's + weight * `divergence`. The model is put into eval(), and frozen.
    """

    model: nn.Module
    weight: float
    temperature: float

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def says(self, task: Task, batch: Any) -> Tensor:
        """Its outputs for a batch."""
        return task.outputs(self.model, batch)

    def loss(self, task: Task, model: nn.Module, batch: Any, said: Tensor) -> Tensor:
        """The loss of the model on a batch for which the teacher has `said` this.

        Raises RequestError when the outputs of the two are of different shapes.
        """
        own, outputs = task.loss_and_outputs(model, batch)
        if outputs.shape != said.shape:
            raise RequestError(
                f"the teacher answers {list(said.shape)} and the model {list(outputs.shape)}",
                where="teacher",
                advice="take a teacher with the same classes",
            )
        return (1 - self.weight) * own + self.weight * divergence(said, outputs, self.temperature)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
