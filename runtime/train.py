"""One deterministic, resumable training loop.

`train` takes any `nn.Module`: a dense model, or a trainable form whose forward projects its latent weights.
On one machine and one version of torch, the result is a function of the model's initial state, the task and
the settings, to the last bit, however often the run was killed and resumed.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import final

import torch
from torch import nn

from .batches import examples
from .blockwise import Block, Turns, find_blocks
from .corpus import Corpus
from .determinism import deterministic, seeded
from .digest import digest
from .errors import RequestError, WorkError
from .events import Evaluated, Event, Finished, Listener, Resumed, Saved, Skipped, Stepped
from .llama import count_parameters
from .moving_average import MovingAverage
from .nonzero import mean_nonzero_parameters, nonzero_parameters
from .optim import peak_rate
from .step_rules import attach
from .tasks import NextToken, Task
from .teacher import Teacher
from .train_result import TrainResult
from .train_settings import TrainSettings
from .training_state import Checkpoint, Stateful, load_checkpoint, save_checkpoint
from .training_step import Step, Taken

__all__ = ["TrainResult", "TrainSettings", "task_of", "train"]

_CURVE_POINTS = 200  # a training curve keeps at most this many, each the mean loss since the one before


def train(
    model: nn.Module,
    data: Corpus | Task,
    settings: TrainSettings,
    *,
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_seconds: float = 30.0,
    run: str = "",
    listener: Listener | None = None,
) -> TrainResult:
    """Train `model` in place at a task, or to predict the next token of a corpus, and measure it.

    `teacher` is the model that the setting of that name means; it is put into eval() and frozen. With
    `checkpoint_dir` the run saves itself there about every `checkpoint_seconds` and at the end, and goes on
    from what it finds there; `run` is a name for the run (the digest of its request) that guards against the
    checkpoint of another. With `ema` the model ends with the averaged weights, which are those measured.

    Raises RequestError when the model, the task or the settings do not fit one another, WorkError when the
    loss or a gradient stops being finite.
    """
    if (teacher is None) == bool(settings.teacher):
        raise RequestError(
            f"the settings say teacher {settings.teacher!r}; the call gives {'one' if teacher else 'none'}",
            where="teacher",
            advice="give both or neither",
        )
    saving = None if checkpoint_dir is None else _Saving(checkpoint_dir, checkpoint_seconds, run)
    with deterministic(settings.threads), seeded(settings.seed):
        taught = None if teacher is None else Teacher(teacher, settings.teacher_weight, settings.temperature)
        return _Run(model, task_of(data, settings), settings, taught, saving, listener or _silent).finish()


def task_of(data: Corpus | Task, settings: TrainSettings) -> Task:
    """The task itself, or that of predicting the tokens of a corpus. Raises RequestError for a short one."""
    if isinstance(data, Task):
        return data
    return NextToken(data, settings.context, settings.batch_size, settings.eval_tokens)


@dataclass(frozen=True)
class _Saving:
    folder: Path
    seconds: float
    run: str


@dataclass
class _Progress:
    """The part of a run's state that is not tensors. Plain JSON values only: it is saved as it is."""

    step: int = 0
    seconds: float = 0.0
    pending: float = 0.0  # sum of losses since the last point of the curve
    counted: int = 0  # how many that are
    skipped: int = 0
    in_a_row: int = 0  # steps that were skipped, up to now
    train_curve: list[list[float]] = field(default_factory=list)
    eval_curve: list[list[float]] = field(default_factory=list)


@final
class _Run:
    """One run in progress."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        settings: TrainSettings,
        teacher: Teacher | None,
        saving: _Saving | None,
        listener: Listener,
    ) -> None:
        self.model, self.task, self.settings = model, task, settings
        self.saving, self.tell = saving, listener
        self.step_tokens = task.step_tokens
        self.steps = settings.steps_of(self.step_tokens)
        self.blocks: tuple[Block, ...] = ()
        if teacher is not None and settings.blocks:
            self.blocks = find_blocks(model, teacher.model, settings.blocks, task)
        self.turns = Turns(max(len(self.blocks), 1), self.steps)
        peak = peak_rate(model, settings.optimizer, settings.learning_rate)
        self.rates = settings.rates(peak, self.turns.longest)
        self.taking = Step(model, task, settings, teacher)
        if teacher is not None:
            teacher.model.to(self.taking.device)
        self.average = MovingAverage(model, settings.ema) if settings.ema else None
        self.parts: dict[str, Stateful] = {
            name: part
            for name, part in (("ema", self.average), ("oscillation", self.taking.watch))
            if part is not None
        }
        self.progress = _Progress()
        self.identity = digest(
            {
                "run": saving.run if saving else "",
                "settings": settings.to_document(),
                "task": task.digest,
                "model": {name: [str(t.dtype), list(t.shape)] for name, t in model.state_dict().items()},
            }
        )

    def finish(self) -> TrainResult:
        """Train to the end, from wherever the run stands."""
        was_training = self.model.training
        try:
            with torch.no_grad():
                self.task.check(self.model.eval())
            self._resume()
            # The last of the hooks: what watches a step does so with the numbers of that step.
            self.following = attach(self.model, self.taking.optimizer, self.steps, step=self.progress.step)
            self._saved_at = time.monotonic()
            self._clock = time.perf_counter() - self.progress.seconds
            while self.progress.step < self.steps:
                self._step()
                self._record()
            self._follow(self.steps)  # what is measured in the end is what was declared
            result = self._result(self._evaluate())
            if self.average is not None:
                self.average.give()
            return result
        finally:
            self.model.train(was_training)

    def _step(self) -> None:
        step = self.progress.step
        batch = self.task.batch(step, self.settings.seed)
        rate = self.rates(self.turns.within(step))
        block = self.blocks[self.turns.block(step)] if self.blocks else None
        if not self.model.training:
            self.model.train()
        self._follow(step)
        taken = self.taking.take(batch, rate, block)
        self._count(taken, rate)
        progress = self.progress
        progress.step += 1
        progress.seconds = time.perf_counter() - self._clock
        if taken.fault:
            return self.tell(Skipped(progress.step, self.steps, taken.fault))
        if self.average is not None:
            self.average.update()
        tokens = progress.step * self.step_tokens
        speed = tokens / progress.seconds
        self.tell(Stepped(progress.step, self.steps, tokens, taken.loss, rate, speed))

    def _follow(self, step: int) -> None:
        """Scheduled numbers and step rules go on by themselves after each step, but for steps not taken."""
        if self.following.step != step:
            self.following.at(step)

    def _count(self, taken: Taken, rate: float) -> None:
        """Take a step's loss into the curve, or a fault as the settings say. Raises WorkError to stop."""
        progress, settings = self.progress, self.settings
        if not taken.fault:
            progress.pending += taken.loss
            progress.counted += 1
            progress.in_a_row = 0
            return
        progress.skipped += 1
        progress.in_a_row += 1
        many = settings.on_nonfinite == "skip" and progress.in_a_row > settings.skip_limit
        if many or settings.on_nonfinite == "stop":
            before = f", after {settings.skip_limit} skipped ones in a row" if many else ""
            at = f"at step {progress.step + 1} of {self.steps}, learning rate {rate:.3g}"
            raise WorkError(
                f"{taken.fault} {at}{before}",
                where="train",
                advice="no step was taken before: look at the loss, the batch and the model's weights"
                if progress.in_a_row > progress.step
                else f"give a learning rate below {self.rates.peak:.3g}, or a longer warm-up",
            )

    def _record(self) -> None:
        progress = self.progress
        step, last = progress.step, progress.step == self.steps
        every = -(-self.steps // _CURVE_POINTS)
        if progress.counted and (step % every == 0 or last):
            loss = progress.pending / progress.counted
            progress.train_curve.append([step, step * self.step_tokens, loss])
            progress.pending, progress.counted = 0.0, 0
        if self.settings.eval_every and step % self.settings.eval_every == 0 and not last:
            progress.eval_curve.append([step, step * self.step_tokens, self._evaluate()])
        if self.saving and (last or time.monotonic() - self._saved_at >= self.saving.seconds):
            self._save(self.saving)

    def _evaluate(self) -> float:
        """Mean loss over the validation examples, summed in float64; of the averaged weights, if any."""
        self.model.eval()
        total, count = 0.0, 0  # count is of examples
        with nullcontext() if self.average is None else self.average.in_place():
            for batch in self.task.validation():
                number = examples(batch)
                total += self.taking.measure(batch) * number
                count += number
        if not count:
            raise RequestError(
                "there is nothing to validate on", where="task", advice="give one batch at least"
            )
        loss = total / count
        step = self.progress.step
        self.tell(Evaluated(step, step * self.step_tokens, loss))
        return loss

    def _result(self, loss: float) -> TrainResult:
        progress, watch = self.progress, self.taking.watch
        if not math.isfinite(loss):
            raise WorkError(
                f"the validation loss is {loss}",
                where="train",
                advice=f"give a learning rate below {self.rates.peak:.3g}",
            )
        tokens = self.steps * self.step_tokens
        points = [*progress.eval_curve, [self.steps, tokens, loss]]
        self.tell(Finished(self.steps, tokens, loss, progress.seconds))
        return TrainResult(
            loss=loss,
            params=count_parameters(self.model),
            final_params=nonzero_parameters(self.model),
            average_params=mean_nonzero_parameters(self.model, self.steps),
            tokens=tokens,
            steps=self.steps,
            seconds=progress.seconds,
            tokens_per_second=tokens / progress.seconds,
            learning_rate=self.rates.peak,
            train_curve=tuple((int(s), int(t), v) for s, t, v in progress.train_curve),
            eval_curve=tuple((int(s), int(t), v) for s, t, v in points),
            skipped=progress.skipped,
            oscillation=None if watch is None else watch.share(),
        )

    def _save(self, saving: _Saving) -> None:
        started = time.monotonic()
        record = asdict(self.progress)
        save_checkpoint(
            saving.folder,
            Checkpoint.of(self.identity, self.model, self.taking.optimizer, record, self.parts),
        )
        self._saved_at = time.monotonic()
        self.tell(Saved(self.progress.step, self._saved_at - started))

    def _resume(self) -> None:
        found = load_checkpoint(self.saving.folder, self.identity) if self.saving else None
        if found is None:
            return
        checkpoint, note = found
        self.progress = _Progress(**checkpoint.restore(self.model, self.taking.optimizer, self.parts))
        self.tell(Resumed(self.progress.step, note))


def _silent(event: Event) -> None:
    """The listener of those who do not listen."""
