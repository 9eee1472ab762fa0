"""One training run, as asked for and as carried out: spec, model, data, budget, seed."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..runtime.corpus import Corpus, load_corpus
from ..runtime.determinism import deterministic, seeded
from ..runtime.digest import digest
from ..runtime.environment import code_digest, environment
from ..runtime.errors import RequestError, RhocError, WorkError
from ..runtime.events import Event, Listener, Resumed, Stepped
from ..runtime.function_task import FunctionTask
from ..runtime.store import ClaimLost, Run, RunStore
from ..runtime.tasks import Task
from ..runtime.train import TrainResult, TrainSettings, task_of, train
from ..runtime.train_settings import SELF
from ..runtime.units import TEXT, Units
from ..runtime.worker_process import report
from .capacity import first_rule
from .compile import Compiled, compile
from .foreign import place, said, whole_traceback
from .gaussian_errors import gaussian_error
from .model_reference import ModelReference
from .packed_quality import packed_quality
from .spec import Spec
from .start import start_weights
from .task_reference import TaskReference

CHECKPOINT_SECONDS = 30.0
_HEARTBEAT_SECONDS = 5.0
_REPORT_SECONDS = 0.5
_CALIBRATION = 8  # training batches that passes look at


@dataclass(frozen=True)
class Experiment:
    """What determines a run. `data` is the string that names a corpus; with a `task` it is not looked at.

    `start` is a run whose weights this one starts from, instead of those of the seed. With `packed` the
    packed model is measured too: at the end, and, where there is a start, before any step is taken.
    """

    spec: Spec
    model: ModelReference
    data: str
    settings: TrainSettings
    task: TaskReference | None = None
    start: Experiment | None = None
    packed: bool = False

    def request(self) -> dict[str, Any]:
        """The JSON object whose digest is the run's identity: everything that determines its outcome.

        Models, tasks and texts in files count by their name and content, not by where they lie.
        """
        document, settings = self.spec.to_document(), self.settings.to_document()
        more = {key: document[key] for key in ("passes", "budget") if document.get(key)}
        reference = self._teacher_reference()
        taught: dict[str, str] = {}
        if reference is not None:
            settings["teacher"] = reference.label
            taught = {"teacher_code": reference.code_digest()}
        return {
            "spec": {
                "name": self.spec.name,
                "version": document["version"],
                "rules": document["rules"],
                **more,
            },
            "model": self.model.label,
            "model_code": self.model.code_digest(),
            **self._data_request(),
            "settings": settings,
            **taught,
            **({} if self.start is None else {"start": digest(self.start.request())}),
            **({"packed": True} if self.packed else {}),
            "seed": self.settings.seed,
            "code": code_digest(),
            "torch": torch.__version__,
        }

    def check(self) -> None:
        """Raise RequestError when model, spec, data and settings do not fit, before anything is spent."""
        task = self.training_task()
        model = self.model.build()
        check_fit(model, task, self.settings, self.task)
        self._compiled(model, task)
        reference = self._teacher_reference()
        if reference is not None:
            check_fit(reference.build(), task, self.settings, self.task)

    def prepare(self, folder: Path | None = None) -> Prepared:
        """Build the model from the seed, compile it, and build what else training needs.

        `folder` is where weights are kept that runs start from. Raises RequestError when model, spec, data
        and settings do not fit one another.
        """
        settings, task = self.settings, self.training_task()
        with seeded(settings.seed):
            model = self.model.build()
        check_fit(model, task, settings, self.task)
        if self.start is not None:
            start = self.start
            model.load_state_dict(start_weights(folder, digest(start.request()), lambda: perform(start)[1]))
        compiled = self._compiled(model, task)
        trainable, reference = compiled.trainable(), self._teacher_reference()
        if reference is None:
            return Prepared(compiled, trainable, task, model if settings.teacher == SELF else None)
        with seeded(settings.seed):
            return Prepared(compiled, trainable, task, reference.build())

    def _compiled(self, model: torch.nn.Module, task: Task) -> Compiled:
        """The model under the spec. Passes look at what a task trains on, or a model that was trained before;
        else at the model's own example."""
        whole = not self.settings.blocks
        given_more = self.start is not None or self.task is not None
        looks = given_more and (self.spec.passes or self.spec.budget is not None)
        given = task.inputs(task.batch(0, self.settings.seed)) if looks else None
        if given is None:
            return compile(model, self.spec, whole=whole)
        others = (task.inputs(task.batch(step, self.settings.seed)) for step in range(_CALIBRATION))
        seen = [inputs for inputs in others if inputs is not None]
        return compile(model, self.spec, given, calibration=seen, whole=whole)

    def training_task(self) -> Task:
        """What is trained: the task that is given, or to predict the next token of the corpus."""
        if self.task is not None:
            return self.task.build()
        return task_of(corpus_of(self.data), self.settings)

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.settings.steps_of(self._step_tokens)

    @property
    def tokens(self) -> int:
        """What is trained on, in whole steps: tokens, or what the task counts."""
        return self.steps * self._step_tokens

    @property
    def units(self) -> Units:
        """What loss and budget are counted in."""
        return TEXT if self.task is None else self.task.build().units

    @property
    def _step_tokens(self) -> int:
        return self.settings.step_tokens if self.task is None else self.task.build().step_tokens

    def _data_request(self) -> dict[str, str]:
        if self.task is not None:
            return {"data": self.task.label, "data_digest": self.task.digest(self.task.build())}
        corpus = corpus_of(self.data)
        return {"data": corpus.name, "data_digest": corpus.digest}

    def _teacher_reference(self) -> ModelReference | None:
        teacher = self.settings.teacher
        return None if teacher in ("", SELF) else ModelReference.parse(teacher)

    def columns(self) -> dict[str, float]:
        """The numbers that laws name: Gaussian errors of the first rule. Laws are not fitted to runs
        that start from other ones, and these have none."""
        if self.start is not None:
            return {}
        rule = first_rule(self.spec)
        return {
            "gmse_weight": gaussian_error(rule.weight_representation, verify=False).value,
            "gmse_input": gaussian_error(rule.input_representation, verify=False).value,
        }


@dataclass(frozen=True)
class Prepared:
    """What a run trains: the compiled model and its trainable form, the task, and the model that teaches it,
    if any does."""

    compiled: Compiled
    trainable: torch.nn.Module
    task: Task
    teacher: torch.nn.Module | None


@dataclass(frozen=True)
class Progress:
    """How far a run is, as a worker process reports it. `resumed` is the step that it went on from."""

    run: str
    step: int
    steps: int
    resumed: int
    loss: float


@lru_cache(maxsize=4)
def corpus_of(data: str) -> Corpus:
    """The corpus that a string names, read once per process."""
    return load_corpus(data)


def perform(
    experiment: Experiment,
    *,
    folder: Path | None = None,
    run: str = "",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    listener: Listener | None = None,
) -> tuple[TrainResult, torch.nn.Module]:
    """Build the model from the seed, compile it, train it: the result and the trained form.

    With `folder` the run saves itself there every `checkpoint_seconds` and goes on from what it finds.
    Raises RequestError when model, spec and corpus do not fit one another.
    """
    result, prepared = _perform(experiment, folder, run, checkpoint_seconds, listener)
    return result, prepared.trainable


def _perform(
    experiment: Experiment,
    folder: Path | None,
    run: str,
    checkpoint_seconds: float,
    listener: Listener | None,
) -> tuple[TrainResult, Prepared]:
    """The same, with all that was made for it."""
    prepared = experiment.prepare(None if folder is None else folder.parent)
    result = train(
        prepared.trainable,
        prepared.task,
        experiment.settings,
        teacher=prepared.teacher,
        checkpoint_dir=folder,
        checkpoint_seconds=checkpoint_seconds,
        run=run,
        listener=listener,
    )
    return result, prepared


def _packed(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """What is measured of packed models: `packed` of the trained one, `packed_start` of the untrained one."""
    if not experiment.packed:
        return {}
    compiled, task, threads = prepared.compiled, prepared.task, experiment.settings.threads
    with deterministic(threads), seeded(experiment.settings.seed):
        found = {"packed": packed_quality(compiled.packed(prepared.trainable), task)}
        if experiment.start is not None:
            found["packed_start"] = packed_quality(compiled.packed(), task)
    return found


def check_fit(
    model: torch.nn.Module,
    data: Corpus | Task,
    settings: TrainSettings,
    reference: TaskReference | None = None,
) -> None:
    """Try the model at what it will be trained on, before it is compiled, for the sake of a clear message.

    `reference` is where a task of a user is from. Raises RequestError when the corpus is too short, when it
    is not what the model takes, or when the task's functions fail.
    """
    task = task_of(data, settings)
    if reference is not None and isinstance(task, FunctionTask):
        return reference.check(task, model)
    was_training = model.training
    with torch.no_grad(), seeded(settings.seed):
        try:
            task.check(model.eval())
        except RhocError:
            raise
        except Exception as error:
            raise RequestError(
                f"the model does not take int64 tokens [1, {settings.context}]: {said(error)}",
                where="model",
                advice=f"look at {place(error)}",
            ) from error
    model.train(was_training)


def carry_out(
    experiment: Experiment,
    place_of_store: str,
    run_id: str,
    folder: str,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    listener: Listener | None = None,
) -> tuple[Run, bool]:
    """Claim a planned run of a store, train it, record the outcome: the run, and whether it was trained here.

    A run that another worker holds or has finished is left untouched. Checkpoints lie in `folder`/<run id>
    until the run is finished. Errors of the run are recorded and raised again; those of code that is not ours
    become a WorkError, whose traceback is in the record.
    """
    with RunStore(place_of_store) as store:
        if not store.claim(run_id, retry=True):
            return store.get(run_id), False
        checkpoints = Path(folder) / run_id
        beat = _Beat(store, run_id, listener)
        try:
            result, prepared = _perform(experiment, checkpoints, run_id, checkpoint_seconds, beat)
            packed = _packed(experiment, prepared)
        except (KeyboardInterrupt, SystemExit):
            store.release(run_id)
            raise
        except ClaimLost:
            raise
        except RhocError as error:
            store.fail(run_id, str(error), environment())
            raise
        except Exception as error:
            at = place(error, None if experiment.task is None else experiment.task.file)
            failure = WorkError(
                said(error), where=at, advice=f"`rhoc runs show {run_id[:8]}` has the traceback"
            )
            store.fail(run_id, said(error), {**environment(), "traceback": whole_traceback(error)})
            raise failure from error
        columns = experiment.columns() | result.columns()
        document = {**result.to_document(), "columns": columns, **packed}
        finished = store.finish(run_id, document, environment())
    shutil.rmtree(checkpoints, ignore_errors=True)
    return finished, True


class _Beat:
    """A listener that keeps the claim alive, says how far the run is, and passes events on."""

    def __init__(self, store: RunStore, run_id: str, listener: Listener | None) -> None:
        self.store, self.run_id, self.listener = store, run_id, listener
        self.beaten, self.reported = time.monotonic(), -math.inf  # the first step is reported at once
        self.resumed = 0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Resumed):
            self.resumed = event.step
            self.store.heartbeat(self.run_id, {"step": event.step, "resumed": event.step})
        if isinstance(event, Stepped) and now - self.reported >= _REPORT_SECONDS:
            self.reported = now
            report(Progress(self.run_id, event.step, event.steps, self.resumed, event.loss))
        if isinstance(event, Stepped) and now - self.beaten >= _HEARTBEAT_SECONDS:
            self.beaten = now
            done = {"step": event.step, "steps": event.steps, "resumed": self.resumed, "loss": event.loss}
            self.store.heartbeat(self.run_id, done)
        if self.listener is not None:
            self.listener(event)
