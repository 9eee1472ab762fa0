"""Sweeps: a grid to run requests, what exists already, what the rest costs, and doing only that."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import RequestError, RhocError
from ..runtime.executors import Processes
from ..runtime.llama import count_parameters
from ..runtime.store import Run, RunStore
from ..runtime.train import TrainSettings, train
from .compile import compile
from .experiment import Experiment, carry_out, corpus_of
from .grid import Block, Grid
from .model_reference import ModelReference
from .spec import Spec, load_spec

_PROBE_STEPS = 4  # the first step of a process pays for warming up, so it is timed apart


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep and the run that stands for it in the store."""

    experiment: Experiment
    params: int
    run: Run
    held_out: bool

    @property
    def label(self) -> str:
        """One line that tells this cell from its neighbours."""
        settings = self.experiment.settings
        size = ", ".join(f"{k}={v}" for k, v in self.experiment.model.arguments)
        return f"{self.experiment.spec.name} {size} N={self.params:,} D={settings.tokens:,} seed {settings.seed}"

    @property
    def flops(self) -> float:
        """Training compute by the usual count, 6 N D."""
        return 6.0 * self.params * self.experiment.settings.tokens


@dataclass(frozen=True)
class Plan:
    """A sweep against a store: every cell, and an estimate of what is missing."""

    grid: Grid
    cells: tuple[Cell, ...]
    seconds_each: dict[str, float]
    workers: int

    @property
    def missing(self) -> tuple[Cell, ...]:
        """Cells still to be trained, the longest first so that workers end together."""
        todo = [cell for cell in self.cells if cell.run.state != "finished"]
        return tuple(sorted(todo, key=lambda cell: -self.seconds_each.get(cell.run.id, 0.0)))

    @property
    def done(self) -> tuple[Cell, ...]:
        """Cells whose run is finished."""
        return tuple(cell for cell in self.cells if cell.run.state == "finished")

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells whose run failed; running the sweep tries them again."""
        return tuple(cell for cell in self.cells if cell.run.state == "failed")

    @property
    def seconds(self) -> float:
        """Estimated wall-clock seconds of what is missing, on this plan's workers."""
        return sum(self.seconds_each.get(cell.run.id, 0.0) for cell in self.missing) / self.workers

    def to_document(self) -> dict[str, Any]:
        """The JSON of `rhoc sweep plan` and `status`."""
        return {
            "sweep": self.grid.name,
            "runs": len(self.cells),
            "done": len(self.done),
            "missing": len(self.missing),
            "failed": len(self.failed),
            "running": sum(cell.run.state == "running" for cell in self.cells),
            "tokens": sum(cell.experiment.settings.tokens for cell in self.missing),
            "flops": sum(cell.flops for cell in self.missing),
            "seconds": round(self.seconds, 1),
            "workers": self.workers,
            "cells": [
                {"run": cell.run.id, "state": cell.run.state, "held_out": cell.held_out, "cell": cell.label}
                for cell in self.cells
            ],
        }


def plan_sweep(grid: Grid, folder: Path, store: RunStore, *, workers: int, estimate: bool = True) -> Plan:
    """Every cell of a grid with its run (planned in the store if new), and the cost of what is missing.

    `folder` is where the grid's spec files lie. With `estimate`, each missing size and spec is timed for a few steps.

    Raises:
        RequestError: an unknown spec, model, corpus or setting; a spec that does not fit a model.
    """
    cells: list[Cell] = []
    for held_out, blocks in ((False, grid.runs), (True, grid.held_out)):
        for block in blocks:
            cells += [_cell(grid, block, folder, store, held_out, *cell) for cell in block.cells()]
    unique = tuple({cell.run.id: cell for cell in reversed(cells)}.values())[::-1]
    todo = [cell for cell in unique if cell.run.state != "finished"]
    return Plan(grid, unique, _estimates(todo) if estimate else {}, workers)


def find_spec(name: str, folder: Path) -> Spec:
    """The spec of a grid: a file beside it, else a shipped name."""
    beside = folder / name
    return load_spec(beside if beside.is_file() else name)


def _cell(
    grid: Grid, block: Block, folder: Path, store: RunStore, held_out: bool,
    spec: str, size: dict[str, Any], tokens: int, seed: int,
) -> Cell:  # fmt: skip
    settings = _settings({**grid.training, **block.training}, tokens, seed)
    model = ModelReference.parse(grid.model).with_arguments(**size)
    experiment = Experiment(find_spec(spec, folder), model, grid.data, settings)
    return Cell(experiment, count_parameters(model.build()), store.ensure(experiment.request()), held_out)


def _settings(training: dict[str, Any], tokens: int, seed: int) -> TrainSettings:
    known = TrainSettings.__dataclass_fields__
    for name in training:
        if name not in known or name in ("tokens", "seed"):
            raise RequestError(f"training has no setting {name!r}", advice=f"known: {', '.join(known)}")
    return TrainSettings(**{**training, "tokens": tokens, "seed": seed})


def _estimates(cells: list[Cell]) -> dict[str, float]:
    """Seconds of each cell: its steps times the time of a step, measured once for each size and spec."""
    measured: dict[tuple[str, str], float] = {}
    seconds = {}
    for cell in cells:
        experiment = cell.experiment
        key = (str(experiment.model), experiment.spec.digest)
        if key not in measured:
            measured[key] = _seconds_per_step(experiment)
        seconds[cell.run.id] = measured[key] * experiment.settings.steps
    return seconds


def _seconds_per_step(experiment: Experiment) -> float:
    """Time of one training step on this machine, from a few of them on throw-away weights."""
    settings = experiment.settings
    few = TrainSettings(
        **{**settings.to_document(), "tokens": _PROBE_STEPS * settings.step_tokens, "eval_tokens": settings.context}
    )
    model = compile(experiment.model.build(), experiment.spec).trainable()
    moments: list[float] = []
    train(model, corpus_of(experiment.data), few, listener=lambda event: moments.append(time.perf_counter()))
    gaps = sorted(later - earlier for earlier, later in zip(moments, moments[1:], strict=False))
    return gaps[len(gaps) // 2]


def run_sweep(
    plan: Plan, place: str, folder: Path, *, only: str = "all", tell: Callable[[Cell, Run | None, int], None]
) -> list[tuple[Cell, str]]:
    """Train what is missing, as single-threaded processes side by side; the cells that failed, with the reason.

    `place` is the store, `folder` holds checkpoints. `only` is 'all', 'runs' or 'held_out'. `tell` hears of each cell
    as it ends: the cell, its run (None when it failed) and how many are left. Killing this at any moment loses at
    most the work since the last checkpoints; the same call goes on from there, to the same bits.
    """
    wanted = [cell for cell in plan.missing if only == "all" or cell.held_out == (only == "held_out")]
    failures: list[tuple[Cell, str]] = []
    if not wanted:
        return failures
    with Processes(min(plan.workers, len(wanted))) as crew:
        futures = {crew.submit(carry_out, place, cell.run.id, str(folder)): cell for cell in wanted}
        for left, future in zip(reversed(range(len(wanted))), as_completed(futures), strict=True):
            cell = futures[future]
            try:
                run = future.result()
            except RhocError as error:
                failures.append((cell, str(error)))
                tell(cell, None, left)
            else:
                tell(cell, run, left)
    return failures
