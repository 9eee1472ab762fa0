"""Runs on the digits task for tests of systems: a model from a seed, trained, and how often it is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.model_reference import ModelReference
from rhoc.compiler.spec import load_spec
from rhoc.compiler.task_reference import TaskReference
from rhoc.runtime.determinism import seeded
from rhoc.runtime.function_task import FunctionTask
from rhoc.runtime.optimizer_choice import OptimizerChoice
from rhoc.runtime.tasks import Task
from rhoc.runtime.train import TrainResult, TrainSettings, train

ROOT = Path(__file__).parent.parent
TASK_FILE = ROOT / "tests" / "bench" / "digits_task.py"
BATCH = 64
SGD = OptimizerChoice.read({"name": "sgd", "momentum": 0.9})


def task() -> Task:
    """The digits classifier's task."""
    return TaskReference(str(TASK_FILE)).build()


def model(factory: str, seed: int) -> nn.Module:
    """One of the task's models, its weights from a seed."""
    with seeded(seed):
        return ModelReference.parse(f"{TASK_FILE}:{factory}").build()


def system(name: str) -> dict[str, Any]:
    """A system's spec as plain data."""
    return load_spec(ROOT / "specs" / "systems" / f"{name}.yaml").to_document()


def fit(student: nn.Module, steps: int, seed: int, **settings: Any) -> TrainResult:
    """Train for so many steps at a constant rate, without decay or warm-up unless settings say so."""
    plain = {"weight_decay": 0.0, "warmup_fraction": 0.0, "learning_rate_schedule": "constant"}
    return train(student, task(), TrainSettings(tokens=steps * BATCH, seed=seed, **(plain | settings)))


@torch.no_grad()
def accuracy(form: nn.Module) -> float:
    """The share of the 397 held-out images that a form sees as what they are."""
    found = task()
    assert isinstance(found, FunctionTask)
    ((images, labels),) = found.validation()
    return float((form.eval()(images).argmax(-1) == labels).double().mean())


def compiled(document: Any, factory: str, seed: int) -> Compiled:
    """A task's model under a spec, without batch or example."""
    return rhoc.compile(model(factory, seed), document)
