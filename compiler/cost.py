"""What runs will cost: the time of a step measured on throw-away weights, and what is left while runs end."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from ..runtime.events import Evaluated, Event, Stepped
from ..runtime.train import TrainSettings, train
from .experiment import Experiment, corpus_of

_PROBE_STEPS = 4  # the first step of a process pays for warming up, so it is not counted
_PROBE_RATE = 1e-6  # so few steps leave no room for a warm-up, and a probe must not diverge


@dataclass(frozen=True)
class Timing:
    """Seconds on this machine: to build and compile a model, for one training step, to evaluate one batch (of
    a task, all of them)."""

    setup: float
    step: float
    evaluation: float

    def of(self, experiment: Experiment) -> float:
        """Estimated seconds of a run, its evaluations included."""
        steps, every = experiment.steps, experiment.settings.eval_every
        evaluations = 1 + ((steps - 1) // every if every else 0) + 2 * experiment.packed
        return self.setup + self.step * steps + self.evaluation * _batches(experiment) * evaluations


def evaluation_windows(experiment: Experiment) -> int:
    """How many windows one evaluation of a run has."""
    settings, corpus = experiment.settings, corpus_of(experiment.data)
    return len(corpus.evaluation(tokens=settings.eval_tokens, context=settings.context))


def _batches(experiment: Experiment) -> int:
    """How often one evaluation takes what `Timing.evaluation` says."""
    if experiment.task is not None:
        return 1
    return -(-evaluation_windows(experiment) // experiment.settings.batch_size)


def measure(experiment: Experiment) -> Timing:
    """Time a few steps of an experiment on throw-away weights, wherever it starts from.

    Raises RequestError when model, spec and corpus do not fit one another.
    """
    settings = experiment.settings
    few = replace(
        settings,
        tokens=_PROBE_STEPS * (experiment.tokens // experiment.steps),
        eval_tokens=settings.step_tokens,
        eval_every=0,
        learning_rate=_PROBE_RATE,
    )
    started = time.perf_counter()
    prepared = replace(experiment, settings=few, start=None).prepare()
    setup = time.perf_counter() - started
    steps: list[float] = []
    evaluated: list[float] = []

    def listen(event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, Stepped):
            steps.append(now)
        elif isinstance(event, Evaluated):
            evaluated.append(now)

    train(prepared.trainable, prepared.task, few, teacher=prepared.teacher, listener=listen)
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    return Timing(setup, median(gaps), evaluated[-1] - steps[-1])


def estimate(experiments: Mapping[str, Experiment]) -> dict[str, float]:
    """Estimated seconds of each run, by its id; each model, spec and shape of a batch is measured once."""
    measured: dict[tuple[str, str, TrainSettings], Timing] = {}
    seconds = {}
    for run, experiment in experiments.items():
        alike = replace(experiment.settings, tokens=1, seed=0, learning_rate=None, learned_rate=None)
        key = (str(experiment.model), experiment.spec.digest, alike)
        if key not in measured:
            measured[key] = measure(experiment)
        seconds[run] = measured[key].of(experiment)
    return seconds


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Seconds until all jobs are done when each free worker takes the longest one left.

    >>> makespan([3.0, 2.0, 2.0, 1.0], workers=2)
    4.0
    """
    loads = [0.0] * workers
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(loads, loads[0] + job)
    return max(loads)


class Pace:
    """How long a sweep still takes, by the planned cost of its runs and how much of it is done a second.

    `planned` are estimated seconds by run; where none is known all runs count alike. Times are seconds of any
    clock. The first word starts the count, so that the time in which workers start is not taken for slowness.
    """

    def __init__(self, planned: Mapping[str, float], workers: int) -> None:
        known = [cost for cost in planned.values() if cost > 0]
        typical = sum(known) / len(known) if known else 1.0
        self._planned = {run: cost if cost > 0 else typical for run, cost in planned.items()}
        self._workers = max(1, min(workers, len(planned)))
        self._estimated = bool(known)
        self._share = dict.fromkeys(planned, 0.0)  # of each run, how much is done
        self._given = dict.fromkeys(planned, 0.0)  # how much of that took no time of this sweep
        self._begin: tuple[float, float] | None = None  # time of the first word, and what was spent by then

    def advance(self, run: str, share: float, now: float, resumed: float = 0.0) -> None:
        """A share of a run, from 0 to 1, is done; the share `resumed` was done before the sweep began."""
        self._share[run], self._given[run] = share, resumed
        self._begin = self._begin or (now, self._spent)

    def end(self, run: str, now: float, *, trained: bool = True) -> None:
        """A run ended. One that was not `trained` to its end here cost no more than its share so far."""
        if not trained:
            self._given[run] += 1.0 - self._share[run]
        self._share[run] = 1.0
        self._begin = self._begin or (now, self._spent)

    @property
    def done(self) -> float:
        """Share of the planned cost that is done, from 0 to 1."""
        total = sum(self._planned.values())
        return sum(self._share[run] * cost for run, cost in self._planned.items()) / total if total else 1.0

    def left(self, now: float) -> float | None:
        """Estimated seconds until the sweep ends; None when nothing is known."""
        rest = [(1.0 - self._share[run]) * cost for run, cost in self._planned.items()]
        since, before = self._begin or (now, self._spent)
        if self._spent <= before or now <= since:
            return makespan(rest, self._workers) if self._estimated else None
        speed = (self._spent - before) / (now - since)  # planned seconds a second, of all workers together
        return max(sum(rest), max(rest, default=0.0) * self._workers) / speed

    @property
    def _spent(self) -> float:
        return sum((self._share[run] - self._given[run]) * cost for run, cost in self._planned.items())
