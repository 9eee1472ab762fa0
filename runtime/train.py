"""One deterministic, resumable training loop.

`train` takes any `nn.Module`: a dense model, or a trainable form whose forward projects its latent weights.
On one machine and one version of torch, the result is a function of the model's initial state, the corpus
and the settings, to the last bit, however often the run was killed and resumed.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from .corpus import Corpus
from .determinism import deterministic, seeded
from .digest import digest
from .errors import RequestError, WorkError
from .events import Evaluated, Event, Finished, Listener, Resumed, Saved, Stepped
from .llama import count_parameters
from .optim import Schedule, adamw, default_learning_rate, width_of
from .tasks import NextToken, Task
from .training_state import Checkpoint, load_checkpoint, save_checkpoint

_CURVE_POINTS = 200  # a training curve keeps at most this many, each the mean loss since the one before


@dataclass(frozen=True)
class TrainSettings:
    """The budget and the choices of a run; with seed and corpus they determine it.

    `tokens` is the budget D, rounded to whole steps of `batch_size` * `context` tokens (at least one).
    `learning_rate` None means the rate derived from the model's width. `eval_tokens` bounds the validation
    targets, `eval_every` is a number of steps (0: only at the end). `threads` is part of the settings because
    the order of sums, and so the last bits of a result, depends on it.
    """

    tokens: int = 1_000_000
    batch_size: int = 16
    context: int = 128
    learning_rate: float | None = None
    warmup_fraction: float = 0.1
    final_fraction: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    eval_tokens: int = 131_072
    eval_every: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "context", "clip", "eval_tokens", "threads"):
            if not getattr(self, name) > 0:
                raise _setting(name, getattr(self, name), "must be positive")
        for name in ("weight_decay", "seed", "eval_every"):
            if not getattr(self, name) >= 0:
                raise _setting(name, getattr(self, name), "must not be negative")
        for name in ("warmup_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise _setting(name, getattr(self, name), "must be between 0 and 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise _setting("learning_rate", self.learning_rate, "must be positive")

    @property
    def step_tokens(self) -> int:
        """Training tokens of one step."""
        return self.batch_size * self.context

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return max(1, round(self.tokens / self.step_tokens))

    def to_document(self) -> dict[str, Any]:
        """Plain JSON, every field."""
        return asdict(self)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. `loss` is the validation loss in nats per token, `params` is N without embeddings.

    `train_curve` and `eval_curve` are (step, tokens, loss); a training point is the mean since the last one.
    `seconds` is time spent training, summed over interruptions, without what a kill threw away.
    """

    loss: float
    params: int
    tokens: int
    steps: int
    seconds: float
    tokens_per_second: float
    learning_rate: float
    train_curve: tuple[tuple[int, int, float], ...]
    eval_curve: tuple[tuple[int, int, float], ...]

    def to_document(self) -> dict[str, Any]:
        """Plain JSON, every field."""
        return asdict(self)


def train(
    model: nn.Module,
    corpus: Corpus,
    settings: TrainSettings,
    *,
    task: Task | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_seconds: float = 30.0,
    run: str = "",
    listener: Listener | None = None,
) -> TrainResult:
    """Train `model` in place and measure it on the validation part of the corpus.

    With `checkpoint_dir` the run saves itself there about every `checkpoint_seconds` and at the end, and goes
    on from what it finds there; `run` is a name for the run (the digest of its request) that guards against
    the checkpoint of another. Raises RequestError when the model or the corpus does not fit, WorkError when
    the loss stops being finite.
    """
    saving = None if checkpoint_dir is None else _Saving(checkpoint_dir, checkpoint_seconds, run)
    with deterministic(settings.threads), seeded(settings.seed):
        return _Run(model, corpus, settings, task or NextToken(), saving, listener or _silent).finish()


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
    train_curve: list[list[float]] = field(default_factory=list)
    eval_curve: list[list[float]] = field(default_factory=list)


@final
class _Run:
    """One run in progress."""

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        settings: TrainSettings,
        task: Task,
        saving: _Saving | None,
        listener: Listener,
    ) -> None:
        corpus.check(settings.context)
        self.model, self.corpus, self.settings, self.task = model, corpus, settings, task
        self.saving, self.tell = saving, listener
        rate = settings.learning_rate
        peak = default_learning_rate(width_of(model)) if rate is None else rate
        self.schedule = Schedule(peak, settings.steps, settings.warmup_fraction, settings.final_fraction)
        self.optimizer = adamw(model, settings.weight_decay)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = self.trained[0].device
        self.windows = corpus.evaluation(tokens=settings.eval_tokens, context=settings.context)
        self.progress = _Progress()
        self.identity = digest(
            {
                "run": saving.run if saving else "",
                "settings": settings.to_document(),
                "corpus": corpus.digest,
                "task": type(task).__qualname__,
                "model": {name: [str(t.dtype), list(t.shape)] for name, t in model.state_dict().items()},
            }
        )

    def finish(self) -> TrainResult:
        """Train to the end, from wherever the run stands."""
        was_training = self.model.training
        try:
            with torch.no_grad():
                self.task.check(self.model.eval(), self.corpus, self.windows[:1].to(self.device))
            self._resume()
            self._saved_at = time.monotonic()
            self._clock = time.perf_counter() - self.progress.seconds
            while self.progress.step < self.settings.steps:
                self._step()
                self._record()
            return self._result(self._evaluate())
        finally:
            self.model.train(was_training)

    def _step(self) -> None:
        settings, step = self.settings, self.progress.step
        batch = self.corpus.batch(
            step, batch_size=settings.batch_size, context=settings.context, seed=settings.seed
        )
        rate = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self.model.training:
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.model, batch.to(self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained, settings.clip)
        value = loss.item()
        if not math.isfinite(value):
            raise WorkError(
                f"the loss became {value} at step {step + 1} of {settings.steps}, learning rate {rate:.3g}",
                where="train",
                advice=f"give a learning rate below {self.schedule.peak:.3g}, or a longer warm-up",
            )
        self.optimizer.step()
        progress = self.progress
        progress.step += 1
        progress.pending += value
        progress.seconds = time.perf_counter() - self._clock
        tokens = progress.step * settings.step_tokens
        speed = tokens / progress.seconds
        self.tell(Stepped(progress.step, settings.steps, tokens, value, rate, speed))

    def _record(self) -> None:
        progress, settings = self.progress, self.settings
        step, last = progress.step, progress.step == settings.steps
        every = -(-settings.steps // _CURVE_POINTS)
        if step % every == 0 or last:
            since = step - (int(progress.train_curve[-1][0]) if progress.train_curve else 0)
            progress.train_curve.append([step, step * settings.step_tokens, progress.pending / since])
            progress.pending = 0.0
        if settings.eval_every and step % settings.eval_every == 0 and not last:
            progress.eval_curve.append([step, step * settings.step_tokens, self._evaluate()])
        if self.saving and (last or time.monotonic() - self._saved_at >= self.saving.seconds):
            self._save(self.saving)

    @torch.no_grad()
    def _evaluate(self) -> float:
        """Mean loss over the fixed windows, summed in float64."""
        self.model.eval()
        total = 0.0
        for windows in torch.split(self.windows, self.settings.batch_size):
            total += self.task.loss(self.model, windows.to(self.device)).item() * len(windows)
        loss = total / len(self.windows)
        step = self.progress.step
        self.tell(Evaluated(step, step * self.settings.step_tokens, loss))
        return loss

    def _result(self, loss: float) -> TrainResult:
        progress, settings = self.progress, self.settings
        if not math.isfinite(loss):
            raise WorkError(
                f"the validation loss is {loss}",
                where="train",
                advice=f"give a learning rate below {self.schedule.peak:.3g}",
            )
        tokens = settings.steps * settings.step_tokens
        points = [*progress.eval_curve, [settings.steps, tokens, loss]]
        self.tell(Finished(settings.steps, tokens, loss, progress.seconds))
        return TrainResult(
            loss=loss,
            params=count_parameters(self.model),
            tokens=tokens,
            steps=settings.steps,
            seconds=progress.seconds,
            tokens_per_second=tokens / progress.seconds,
            learning_rate=self.schedule.peak,
            train_curve=tuple((int(s), int(t), v) for s, t, v in progress.train_curve),
            eval_curve=tuple((int(s), int(t), v) for s, t, v in points),
        )

    def _save(self, saving: _Saving) -> None:
        started = time.monotonic()
        state = Checkpoint.of(self.identity, self.model, self.optimizer, asdict(self.progress))
        save_checkpoint(saving.folder, state)
        self._saved_at = time.monotonic()
        self.tell(Saved(self.progress.step, self._saved_at - started))

    def _resume(self) -> None:
        found = load_checkpoint(self.saving.folder, self.identity) if self.saving else None
        if found is None:
            return
        checkpoint, note = found
        checkpoint.restore(self.model, self.optimizer)
        self.progress = _Progress(**checkpoint.record)
        self.tell(Resumed(self.progress.step, note))


def _setting(name: str, value: object, problem: str) -> RequestError:
    return RequestError(f"{name} {problem}, got {value}", where="training settings")


def _silent(event: Event) -> None:
    """The listener of those who do not listen."""
