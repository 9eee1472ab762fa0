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
from ..runtime.determinism import seeded
from ..runtime.environment import code_digest, environment
from ..runtime.errors import RequestError, RhocError, WorkError
from ..runtime.events import Event, Listener, Resumed, Stepped
from ..runtime.store import ClaimLost, Run, RunStore
from ..runtime.tasks import NextToken
from ..runtime.train import TrainResult, TrainSettings, train
from ..runtime.worker_process import report
from .capacity import first_rule
from .compile import compile
from .foreign import place, said, whole_traceback
from .gaussian_errors import gaussian_error
from .model_reference import ModelReference
from .spec import Spec

CHECKPOINT_SECONDS = 30.0
_HEARTBEAT_SECONDS = 5.0
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Experiment:
    """What determines a run. `data` is the string that names a corpus."""

    spec: Spec
    model: ModelReference
    data: str
    settings: TrainSettings

    def request(self) -> dict[str, Any]:
        """The JSON object whose digest is the run's identity: everything that determines its outcome.

        Models and texts in files count by their name and content, not by where they lie.
        """
        document = self.spec.to_document()
        corpus = corpus_of(self.data)
        return {
            "spec": {"name": self.spec.name, "version": document["version"], "rules": document["rules"]},
            "model": self.model.label,
            "model_code": self.model.code_digest(),
            "data": corpus.name,
            "data_digest": corpus.digest,
            "settings": self.settings.to_document(),
            "seed": self.settings.seed,
            "code": code_digest(),
            "torch": torch.__version__,
        }

    def check(self) -> None:
        """Raise RequestError when model, spec and corpus do not fit one another, before anything is spent."""
        model = self.model.build()
        check_fit(model, corpus_of(self.data), self.settings)
        compile(model, self.spec)

    def columns(self) -> dict[str, float]:
        """The numbers that laws name: the Gaussian errors of the spec's first rule."""
        rule = first_rule(self.spec)
        return {
            "gmse_weight": gaussian_error(rule.weight_representation, verify=False).value,
            "gmse_input": gaussian_error(rule.input_representation, verify=False).value,
        }


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
    settings, corpus = experiment.settings, corpus_of(experiment.data)
    with seeded(settings.seed):
        model = experiment.model.build()
    check_fit(model, corpus, settings)
    trainable = compile(model, experiment.spec).trainable()
    result = train(
        trainable,
        corpus,
        settings,
        checkpoint_dir=folder,
        checkpoint_seconds=checkpoint_seconds,
        run=run,
        listener=listener,
    )
    return result, trainable


def check_fit(model: torch.nn.Module, corpus: Corpus, settings: TrainSettings) -> None:
    """Ask the model for one window before it is compiled, for the sake of a clear message.

    Raises RequestError when the corpus is too short, or is not what the model takes.
    """
    corpus.check(settings.context)
    was_training = model.training
    with torch.no_grad(), seeded(settings.seed):
        window = corpus.evaluation(tokens=settings.context, context=settings.context)[:1]
        try:
            NextToken().check(model.eval(), corpus, window)
        except RhocError:
            raise
        except Exception as error:
            raise RequestError(
                f"the model does not take int64 tokens {list(window[:, :-1].shape)}: {said(error)}",
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
            result, _ = perform(
                experiment,
                folder=checkpoints,
                run=run_id,
                checkpoint_seconds=checkpoint_seconds,
                listener=beat,
            )
        except (KeyboardInterrupt, SystemExit):
            store.release(run_id)
            raise
        except ClaimLost:
            raise
        except RhocError as error:
            store.fail(run_id, str(error), environment())
            raise
        except Exception as error:
            failure = WorkError(
                said(error), where=place(error), advice=f"`rhoc runs show {run_id[:8]}` has the traceback"
            )
            store.fail(run_id, said(error), {**environment(), "traceback": whole_traceback(error)})
            raise failure from error
        document = {**result.to_document(), "columns": experiment.columns()}
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
