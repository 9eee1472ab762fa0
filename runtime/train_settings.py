"""What a training run is asked to be: its budget, its optimiser, and all else that decides its numbers.

A setting at its default costs nothing and changes nothing: those that came later than the first runs are left
out of the document while they are at it, so that such runs keep their identity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import RequestError
from .learning_rates import DECAY_SHAPES, SCHEDULES, Constant, Cosine, LearningRate, WarmupStableDecay
from .optimizer_choice import OptimizerChoice

SELF = "self"  # the teacher that is the dense model itself, as it is at the start of the run

_WHERE = "training settings"
_ADAMW = OptimizerChoice()
_FIRST = (  # the settings of the first runs: always in the document
    "tokens",
    "batch_size",
    "context",
    "learning_rate",
    "warmup_fraction",
    "final_fraction",
    "weight_decay",
    "clip",
    "seed",
    "eval_tokens",
    "eval_every",
    "threads",
)


class SettingError(RequestError):
    """A setting, or several that contradict one another; `setting` is the name of one to change."""

    def __init__(self, setting: str, message: str, advice: str = "") -> None:
        super().__init__(message, where=_WHERE, advice=advice)
        self.setting = setting


@dataclass(frozen=True)
class TrainSettings:
    """The budget and the choices of a run; with seed and corpus they determine it.

    `tokens` is the budget D, rounded to whole steps of `batch_size` * `context` tokens (at least one); a task
    with batches of its own counts what it says, by default examples. `learning_rate` None means the rate
    derived from the model's width, for optimisers like Adam. `learning_rate_schedule` is `cosine`, `wsd`
    (stable until the last `decay_fraction` of the steps, then down, `decay_shape` linear or sqrt) or
    `constant`, all after a linear rise. `eval_tokens` bounds the validation targets, `eval_every` is a number
    of steps (0: only at the end). `threads` is part of the settings because the order of sums, and so the
    last bits of a result, depends on it.

    `optimizer` is a name in torch.optim, or a mapping with a name and options. `weight_decay` is decoupled
    under every optimiser and for matrices only; `latent_decay` is that of weights that are projected: `same`,
    `none` or a rate. `step_limit` bounds the root mean square of a step of each weight with a grid, in widths
    of the grid's cells; `oscillation` asks for the share of weights that oscillate, which `step_limit`
    reports too. `clip` bounds the norm of the gradient. `on_nonfinite` says what becomes of a step whose loss
    or gradient is not finite: `stop` the run, or `skip` it, at most `skip_limit` of them in a row.

    `autocast` is `none` or `bfloat16`. `accumulation` splits a batch in so many parts, one after the other.
    `ema` is the decay of an average of the weights (0: none), which is then what is measured and left in the
    model. `compile` runs forward pass and loss, and the optimiser's step, through torch.compile.

    `teacher` is empty, `self` or a model reference; the loss is then (1 - `teacher_weight`) * the task's +
    `teacher_weight` * T^2 * KL(teacher || model) of the outputs at `temperature` T. With `blocks` (`auto` or
    a regular expression of module paths) it is the mean squared error of one block's output against the
    teacher's, block after block, each with an equal share of the steps and the whole course of the learning
    rate. `learned_rate` is the peak rate of learned steps, offsets and fields, by default that of all.

    Raises SettingError, a RequestError.
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
    optimizer: OptimizerChoice = _ADAMW
    learning_rate_schedule: str = "cosine"
    decay_fraction: float = 0.2
    decay_shape: str = "linear"
    latent_decay: float | str = "same"
    step_limit: float | None = None
    oscillation: bool = False
    on_nonfinite: str = "stop"
    skip_limit: int = 10
    autocast: str = "none"
    accumulation: int = 1
    ema: float = 0.0
    compile: bool = False
    teacher: str = ""
    teacher_weight: float = 0.5
    temperature: float = 1.0
    blocks: str = ""
    learned_rate: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", OptimizerChoice.read(self.optimizer))
        for field in fields(self):
            problem = setting_fault(field.name, getattr(self, field.name))
            if problem:
                raise SettingError(field.name, problem)
        self._check_together()

    def _check_together(self) -> None:
        """What no setting shows by itself: a schedule that ends before it begins, and options of nothing."""
        decays = self.learning_rate_schedule == "wsd"
        if decays and self.warmup_fraction + self.decay_fraction > 1 + 1e-9:
            raise SettingError(
                "decay_fraction",
                f"the learning rate would decay before it is warm: warmup_fraction {self.warmup_fraction:g} "
                f"and decay_fraction {self.decay_fraction:g} are more than the whole run",
                "make one of them smaller",
            )
        needs = {
            "decay_fraction": (decays, "learning_rate_schedule: wsd"),
            "decay_shape": (decays, "learning_rate_schedule: wsd"),
            "skip_limit": (self.on_nonfinite == "skip", "on_nonfinite: skip"),
            "teacher_weight": (bool(self.teacher), "a teacher"),
            "temperature": (bool(self.teacher), "a teacher"),
        }
        self._check_blocks()
        for name, (met, what) in needs.items():
            if not met and getattr(self, name) != getattr(type(self), name):
                raise SettingError(
                    name, f"{name} means nothing without {what}", f"give {what}, or leave it out"
                )

    def _check_blocks(self) -> None:
        whole = ("teacher_weight", "temperature", "compile")
        if self.blocks and not self.teacher:
            raise SettingError("blocks", "blocks are fitted to those of a teacher", "give one: teacher self")
        for name in whole if self.blocks else ():
            if getattr(self, name) != getattr(type(self), name):
                raise SettingError(name, f"{name} is of a loss of the whole model", "leave it out, or blocks")
        if self.learned_rate is not None and self.learning_rate is None:
            raise SettingError("learned_rate", "a rate beside one that is derived", "give learning_rate too")

    @property
    def learned_share(self) -> float | None:
        """The learning rate of what is learned beside weights as a multiple of theirs; None: theirs."""
        if self.learned_rate is None or self.learning_rate is None:
            return None
        return self.learned_rate / self.learning_rate

    @property
    def step_tokens(self) -> int:
        """Training tokens of one step."""
        return self.batch_size * self.context

    @property
    def steps(self) -> int:
        """Optimiser steps of a run on tokens."""
        return self.steps_of(self.step_tokens)

    def steps_of(self, step_tokens: int) -> int:
        """Optimiser steps of a run whose steps count so many tokens (or examples) each."""
        return max(1, round(self.tokens / step_tokens))

    @property
    def latent_rate(self) -> float | None:
        """The decay of weights that are projected; None where it is that of the others."""
        if isinstance(self.latent_decay, str):
            return None if self.latent_decay == "same" else 0.0
        return self.latent_decay

    def rates(self, peak: float, steps: int) -> LearningRate:
        """The learning rate by step, with this peak."""
        warm, final = self.warmup_fraction, self.final_fraction
        if self.learning_rate_schedule == "wsd":
            return WarmupStableDecay(peak, steps, warm, final, self.decay_fraction, self.decay_shape)
        return (Cosine if self.learning_rate_schedule == "cosine" else Constant)(peak, steps, warm, final)

    def to_document(self) -> dict[str, Any]:
        """Plain JSON: the settings of the first runs always, later ones where they are not the default."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = {n: v for n, v in values.items() if n in _FIRST or v != getattr(type(self), n)}
        return {n: v.to_document() if isinstance(v, OptimizerChoice) else v for n, v in kept.items()}


def setting_fault(name: str, value: Any) -> str:
    """What is wrong with the value of one setting by itself, as `name must be ..., got ...`; or nothing."""
    test, problem = _CHECKS.get(name, (None, ""))
    return "" if test is None or test(value) else f"{name} {problem}, got {value}"


_Check = tuple[Callable[[Any], bool], str]


def _one_of(*words: str) -> _Check:
    return (lambda value: value in words), f"must be {', '.join(words[:-1])} or {words[-1]}"


def _is_pattern(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True


_POSITIVE: _Check = (lambda value: value > 0), "must be positive"
_NOT_NEGATIVE: _Check = (lambda value: value >= 0), "must not be negative"
_SHARE: _Check = (lambda value: 0 <= value <= 1), "must be between 0 and 1"
_CHECKS: Mapping[str, _Check] = {
    **dict.fromkeys(("tokens", "batch_size", "context", "clip", "eval_tokens", "threads"), _POSITIVE),
    **dict.fromkeys(("skip_limit", "accumulation", "temperature"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "seed", "eval_every"), _NOT_NEGATIVE),
    **dict.fromkeys(("warmup_fraction", "final_fraction", "decay_fraction", "teacher_weight"), _SHARE),
    "learning_rate": (lambda value: value is None or 0 < value < math.inf, "must be positive"),
    "step_limit": (lambda value: value is None or 0 < value < math.inf, "must be positive"),
    "learned_rate": (lambda value: value is None or 0 < value < math.inf, "must be positive"),
    "blocks": (_is_pattern, "must be auto or a regular expression of module paths"),
    "latent_decay": (
        lambda value: value in ("same", "none") or (not isinstance(value, str) and value >= 0),
        "must be same, none or a rate that is not negative",
    ),
    "ema": (lambda value: 0 <= value < 1, "must be at least 0 and below 1"),
    "learning_rate_schedule": _one_of(*SCHEDULES),
    "decay_shape": _one_of(*DECAY_SHAPES),
    "on_nonfinite": _one_of("stop", "skip"),
    "autocast": _one_of("none", "bfloat16"),
}
