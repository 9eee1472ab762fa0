"""One step of training: the loss of a batch, its gradient, and what the optimiser makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from .batches import moved, split
from .blockwise import Block
from .errors import WorkError
from .gridded import gridded
from .optim import attach_decay, build_optimizer, set_rate
from .oscillation import Oscillation
from .step_limit import StepLimit
from .tasks import Task
from .teacher import Teacher
from .train_settings import TrainSettings

BACKEND = "inductor"  # of torch.compile

_AUTOCAST = {"bfloat16": torch.bfloat16}

Losing = Callable[[Any, Tensor | None], Tensor]
"""The loss of a batch, given what the teacher says of it."""


@dataclass(frozen=True)
class Taken:
    """What a step came to: the loss of its batch, and what was not finite, or nothing."""

    loss: float
    fault: str = ""


@final
class Step:
    """Takes steps of a model at a task. `watch` counts oscillations, where the settings ask for that."""

    def __init__(
        self, model: nn.Module, task: Task, settings: TrainSettings, teacher: Teacher | None
    ) -> None:
        self.model, self.task, self.settings, self.teacher = model, task, settings, teacher
        choice = settings.optimizer
        # torch's fused kernels are faster than what the compiler makes of the same step, so they are kept.
        compiles = settings.compile and not choice.fused
        self.optimizer = build_optimizer(
            model,
            choice,
            settings.weight_decay,
            settings.latent_rate,
            learned_share=settings.learned_share,
            rate_as_tensor=compiles,
        )
        self.watch = self._hooked()
        self._trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.device = self._trained[0][1].device
        self._losing: Losing = self._loss
        self._step: Callable[[], object] = self.optimizer.step
        if settings.compile:
            torch.compiler.reset()  # compiled code is kept by line: that of earlier runs would count as ours
            self._losing = torch.compile(self._loss, fullgraph=True, dynamic=False, backend=BACKEND)
        if compiles:
            self._step = torch.compile(self.optimizer.step, dynamic=False, backend=BACKEND)

    def _hooked(self) -> Oscillation | None:
        """Hook on to the optimiser's step: the limit before decay, and what watches after both."""
        limit = self.settings.step_limit
        if limit is not None:
            StepLimit(self.model, limit).attach(self.optimizer)
        attach_decay(self.optimizer)
        limited = limit is not None and any(weight.is_coded for weight in gridded(self.model))
        if not self.settings.oscillation and not limited:
            return None
        watch = Oscillation(self.model)
        watch.attach(self.optimizer)
        return watch

    def take(self, batch: Any, rate: float, block: Block | None = None) -> Taken:
        """One step at a learning rate; none where loss or gradient are not finite, which `fault` then says.
        With a `block` it is a step of that, at the teacher's block.

        Raises WorkError when the step is to be compiled and cannot be.
        """
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for part, share in split(moved(batch, self.device), self.settings.accumulation):
            loss = self._forward(part) if block is None else self._block_loss(block, part)
            loss = loss if share == 1 else loss * share
            loss.backward()  # type: ignore[no-untyped-call]
            value += loss.item()
        if not math.isfinite(value):
            return Taken(value, f"the loss became {value}")
        parameters = [parameter for _, parameter in self._trained]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(norm.item()):
            return Taken(value, f"{self._broken()} is not finite (the loss is {value:.4g})")
        nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        with self._guard():
            self._step()
        return Taken(value)

    @torch.no_grad()
    def measure(self, batch: Any) -> float:
        """The task's loss of a batch, as the model stands; never compiled, and without the teacher."""
        with self._cast():
            return self.task.loss(self.model, moved(batch, self.device)).item()

    def _forward(self, batch: Any) -> Tensor:
        said = None
        if self.teacher is not None:
            with self._cast():
                said = self.teacher.says(self.task, batch)
        with self._guard():
            return self._losing(batch, said)

    def _block_loss(self, block: Block, batch: Any) -> Tensor:
        assert self.teacher is not None, "blocks are those of a teacher"
        with self._cast():
            return block.loss(self.task, self.model, self.teacher.model, batch)

    def _loss(self, batch: Any, said: Tensor | None) -> Tensor:
        with self._cast():
            if self.teacher is None or said is None:
                return self.task.loss(self.model, batch)
            return self.teacher.loss(self.task, self.model, batch, said)

    def _cast(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self.settings.autocast)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _guard(self) -> AbstractContextManager[object]:
        return _compiling() if self.settings.compile else nullcontext()

    def _broken(self) -> str:
        """The first gradient that is not finite; where all are, it is their norm that has overflowed."""
        for name, parameter in self._trained:
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"the gradient of {name}"
        return "the norm of the gradient"


@contextmanager
def _compiling() -> Iterator[None]:
    """What the compiler cannot do, in one sentence."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise WorkError(
            f"the step cannot be compiled as one graph: {lines[0] if lines else type(error).__name__}",
            where="compile",
            advice="leave compile out, or change the model until torch.compile(fullgraph=True) takes it",
        ) from error
