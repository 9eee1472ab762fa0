"""Sweeps: a grid as runs, what exists of them already, and what the rest costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..runtime.digest import digest
from ..runtime.errors import RequestError
from ..runtime.llama import count_parameters
from ..runtime.store import Run, RunStore
from ..runtime.train import TrainSettings
from ..runtime.units import Units
from .cost import estimate, makespan
from .experiment import Experiment
from .grid import Block, Grid, find_data, find_spec, find_task
from .model_reference import ModelReference
from .spec import Spec

CellState = Literal["planned", "running", "interrupted", "failed", "finished"]


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep, its request, and the run of the store with that request, if there is one.

    `params` is N of its model; `factors` are the names of the specs that a held-out one is predicted from;
    `scratch`: it starts from random weights where others of its sweep start from a dense model.
    """

    experiment: Experiment
    request: dict[str, Any]
    params: int
    run: Run | None
    state: CellState
    held_out: bool
    factors: tuple[str, ...] = ()
    scratch: bool = False

    @cached_property
    def id(self) -> str:
        """The id that the run has or will have."""
        return digest(self.request)

    @property
    def size(self) -> str:
        """The arguments of the model: `width=16`."""
        return ", ".join(f"{name}={value}" for name, value in self.experiment.model.arguments)

    @property
    def tokens(self) -> int:
        """Training tokens, D, in whole steps; of a task, what it counts. Those of a start do not count."""
        return self.experiment.tokens

    @property
    def label(self) -> str:
        """One line that tells this cell from its neighbours."""
        name, seed = self.experiment.spec.name, self.experiment.settings.seed
        how = f"N={self.params:,} D={self.tokens:,} seed {seed}"
        return " ".join(filter(None, (name, self.size, how, "from scratch" if self.scratch else "")))

    @property
    def flops(self) -> float:
        """Training compute by the usual count, 6 N D (arXiv 2001.08361, Table 1)."""
        return 6.0 * self.params * self.tokens

    @property
    def loss(self) -> float | None:
        """Validation loss of a finished run."""
        return None if self.run is None else self.run.loss

    @property
    def finished(self) -> Run:
        """The finished run. Raises RequestError when there is none yet."""
        if self.run is None or self.state != "finished":
            raise RequestError(
                f"this run is {self.state}", where=self.label, advice="finish it with `rhoc sweep run`"
            )
        return self.run


@dataclass(frozen=True)
class Plan:
    """A sweep against a store: every cell, and estimated seconds of those that are missing, by run id."""

    grid: Grid
    cells: tuple[Cell, ...]
    workers: int
    seconds_each: dict[str, float] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[Cell, ...]:
        """Cells still to be trained, the longest first so that workers end together."""
        todo = [cell for cell in self.cells if cell.state != "finished"]
        return tuple(sorted(todo, key=lambda cell: -(self.seconds_each.get(cell.id) or cell.flops)))

    @property
    def done(self) -> tuple[Cell, ...]:
        """Cells whose run is finished."""
        return tuple(cell for cell in self.cells if cell.state == "finished")

    @property
    def units(self) -> Units:
        """What losses and budgets are counted in: all runs have the same task."""
        return self.cells[0].experiment.units

    def seconds(self, cells: tuple[Cell, ...]) -> float | None:
        """Estimated wall-clock seconds of cells on this plan's workers; None without estimates."""
        known = [self.seconds_each[cell.id] for cell in cells if cell.id in self.seconds_each]
        return makespan(known, self.workers) if known or not cells else None

    def count(self, state: CellState) -> int:
        """How many cells are in a state."""
        return sum(cell.state == state for cell in self.cells)

    def to_document(self) -> dict[str, Any]:
        """The JSON of `rhoc sweep plan` and `status`."""
        seconds = self.seconds(self.missing)
        return {
            "sweep": self.grid.name,
            "runs": len(self.cells),
            "done": len(self.done),
            "missing": len(self.missing),
            "failed": self.count("failed"),
            "running": self.count("running"),
            "interrupted": self.count("interrupted"),
            "tokens": sum(cell.tokens for cell in self.missing),
            "unit": self.units.budget,
            "flops": sum(cell.flops for cell in self.missing),
            "seconds": None if seconds is None else round(seconds, 1),
            "workers": self.workers,
            "cells": [self._cell_document(cell) for cell in self.cells],
        }

    def _cell_document(self, cell: Cell) -> dict[str, Any]:
        return {
            "run": cell.id,
            "state": cell.state,
            "held_out": cell.held_out,
            "spec": cell.experiment.spec.name,
            "model": cell.experiment.model.label,
            "params": cell.params,
            "tokens": cell.tokens,
            "seed": cell.experiment.settings.seed,
            "flops": cell.flops,
            "seconds": self.seconds_each.get(cell.id),
            "loss": cell.loss,
            "error": cell.run.error if cell.run is not None and cell.state == "failed" else None,
        }


def plan_sweep(grid: Grid, folder: Path, store: RunStore | None, *, workers: int, timed: bool = True) -> Plan:
    """Every cell of a grid with its run in the store, if it has one. Nothing is written.

    `folder` is where the grid's files lie; without a store everything is missing. With `timed`, every missing
    combination of size and spec is timed for a few steps.

    Raises:
        RequestError: an unknown model or corpus, a spec that does not fit a model, a run that is both in the
            sweep and held out.
    """
    planner = _Planner(grid, folder, store)
    cells = tuple(planner.cells())
    _check_names(cells)
    plan = Plan(grid, cells, workers)
    if not timed:
        return plan
    return Plan(grid, cells, workers, estimate({cell.id: cell.experiment for cell in plan.missing}))


class _Planner:
    """Makes the cells of a grid; counts the parameters of each model once."""

    def __init__(self, grid: Grid, folder: Path, store: RunStore | None) -> None:
        self.grid, self.folder, self.store = grid, folder, store
        self.model = ModelReference.parse(grid.model, folder)
        self.data, self.task = find_data(grid.data, folder), find_task(grid.task, folder)
        self.params: dict[str, int] = {}
        self.specs: dict[str, Spec] = {}

    def cells(self) -> Iterator[Cell]:
        """Every cell once, in the order of the grid."""
        seen: dict[str, Cell] = {}
        for held_out, blocks in ((False, self.grid.runs), (True, self.grid.held_out)):
            for block in blocks:
                for values in block.cells():
                    cell = self._cell(block, held_out, *values)
                    first = seen.setdefault(cell.id, cell)
                    if first is cell:
                        yield cell
                    elif first.held_out != held_out:
                        advice = "take it out of runs or of held_out"
                        raise RequestError(
                            "this run is both in the sweep and held out", where=cell.label, advice=advice
                        )

    def _cell(
        self, block: Block, held_out: bool, spec: str, size: dict[str, Any], tokens: int, seed: int
    ) -> Cell:
        training: dict[str, Any] = {**self.grid.training, **block.training}
        settings = TrainSettings(**training, tokens=tokens, seed=seed)
        model = self.model.with_arguments(size)
        factors = tuple(self._spec(part).name for part in self.grid.factors(block, spec)) if held_out else ()
        start = None if block.scratch else self._start(model, seed)
        experiment = Experiment(
            self._spec(spec), model, self.data, settings, self.task, start, self.grid.packed
        )
        request = experiment.request()
        run = None if self.store is None else self.store.find(request)
        state, count = self._state(run), self._count(model)
        return Cell(experiment, request, count, run, state, held_out, factors, block.scratch)

    def _start(self, model: ModelReference, seed: int) -> Experiment | None:
        start = self.grid.start
        if start is None:
            return None
        training: dict[str, Any] = {**self.grid.training, **start.training}
        settings = TrainSettings(**training, tokens=start.tokens, seed=seed)
        return Experiment(self._spec("dense"), model, self.data, settings, self.task)

    def _spec(self, name: str) -> Spec:
        if name not in self.specs:
            self.specs[name] = find_spec(name, self.folder)
        return self.specs[name]

    def _count(self, model: ModelReference) -> int:
        key = str(model)
        if key not in self.params:
            self.params[key] = count_parameters(model.build())
        return self.params[key]

    def _state(self, run: Run | None) -> CellState:
        if run is None:
            return "planned"
        abandoned = self.store is not None and self.store.is_abandoned(run)
        return "interrupted" if abandoned else run.state


def _check_names(cells: tuple[Cell, ...]) -> None:
    """Laws and tables know specs by name: two that differ may not share one."""
    known: dict[str, Spec] = {}
    for cell in cells:
        spec = cell.experiment.spec
        other = known.setdefault(spec.name, spec)
        if other.digest != spec.digest:
            raise RequestError(
                f"two different specs are called {spec.name!r}: {other.source} and {spec.source}",
                where="sweep",
                advice="give one of them another name:",
            )
