"""One training run, as asked for and as carried out: spec, model, data, budget, seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..runtime.capacity import gmse
from ..runtime.corpus import Corpus, load_corpus
from ..runtime.determinism import seeded
from ..runtime.environment import code_digest, environment
from ..runtime.events import Event, Listener, Stepped
from ..runtime.store import Run, RunStore
from ..runtime.train import TrainResult, TrainSettings, train
from .capacity import first_rule
from .compile import compile
from .model_reference import ModelReference
from .spec import Spec, load_spec

_HEARTBEAT_STEPS = 25


@dataclass(frozen=True)
class Experiment:
    """What determines a run. `data` is the string that names a corpus."""

    spec: Spec
    model: ModelReference
    data: str
    settings: TrainSettings

    def request(self) -> dict[str, Any]:
        """The JSON object whose digest is the run's identity: everything that determines its outcome."""
        document = self.spec.to_document()
        return {
            "spec": {"name": self.spec.name, "version": document["version"], "rules": document["rules"]},
            "model": str(self.model),
            "data": self.data,
            "data_digest": corpus_of(self.data).digest,
            "settings": self.settings.to_document(),
            "seed": self.settings.seed,
            "code": code_digest(),
            "torch": torch.__version__,
        }

    @classmethod
    def of_request(cls, request: Mapping[str, Any]) -> Experiment:
        """The experiment that a request describes."""
        return cls(
            load_spec(request["spec"]),
            ModelReference.parse(request["model"]),
            request["data"],
            TrainSettings(**request["settings"]),
        )

    def columns(self) -> dict[str, float]:
        """The numbers that laws name: Gaussian error and stored bits of the spec's first rule."""
        if not self.spec.rules:
            return {"gmse_weight": 0.0, "gmse_input": 0.0}
        rule = first_rule(self.spec)
        return {
            "gmse_weight": gmse(rule.weight_representation).value,
            "gmse_input": gmse(rule.input_representation).value,
        }


@lru_cache(maxsize=4)
def corpus_of(data: str) -> Corpus:
    """The corpus that a string names, read once per process."""
    return load_corpus(data)


def perform(
    experiment: Experiment, *, folder: Path | None = None, run: str = "", listener: Listener | None = None
) -> tuple[TrainResult, torch.nn.Module]:
    """Build the model from the seed, compile it, train it: the result and the trained form.

    With `folder` the run checkpoints there and goes on from what it finds.
    """
    with seeded(experiment.settings.seed):
        model = experiment.model.build()
    trainable = compile(model, experiment.spec).trainable()
    corpus = corpus_of(experiment.data)
    result = train(trainable, corpus, experiment.settings, checkpoint_dir=folder, run=run, listener=listener)
    return result, trainable


def carry_out(place: str, run_id: str, folder: str, listener: Listener | None = None) -> Run:
    """Claim a planned run of a store, train it and record the outcome. Returns the run as it then is.

    A run that another worker holds or has finished is returned untouched. Checkpoints lie in `folder`/<run id>
    until the run is finished. Errors of the run are recorded and raised again.
    """
    with RunStore(place) as store:
        if not store.claim(run_id, retry=True):
            return store.get(run_id)
        experiment = Experiment.of_request(store.get(run_id).request)
        checkpoints = Path(folder) / run_id
        try:
            result, _ = perform(experiment, folder=checkpoints, run=run_id, listener=_Beat(store, run_id, listener))
        except (KeyboardInterrupt, SystemExit):
            store.release(run_id)
            raise
        except Exception as error:
            store.fail(run_id, str(error), environment())
            raise
        document = {**result.to_document(), "columns": experiment.columns()}
        finished = store.finish(run_id, document, environment())
    _remove(checkpoints)
    return finished


class _Beat:
    """A listener that keeps the claim alive and passes events on."""

    def __init__(self, store: RunStore, run_id: str, listener: Listener | None) -> None:
        self.store, self.run_id, self.listener = store, run_id, listener

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped) and event.step % _HEARTBEAT_STEPS == 0:
            progress = {"step": event.step, "steps": event.steps, "loss": event.loss}
            self.store.heartbeat(self.run_id, progress)
        if self.listener is not None:
            self.listener(event)


def _remove(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
