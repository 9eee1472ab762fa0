"""Training what is missing of a sweep, side by side, each run once however many processes are at it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import RhocError
from ..runtime.executors import Executor, OnReport, Processes
from ..runtime.store import Run, RunStore
from .experiment import Progress, carry_out
from .foreign import said
from .start import STARTS
from .sweep import Cell, Plan

_LOOK_SECONDS = 1.0  # between looks at runs that another process holds


@dataclass(frozen=True)
class Advanced:
    """A run goes on: the shares of its steps that are done, and that were done before."""

    cell: Cell
    share: float
    resumed: float
    loss: float


@dataclass(frozen=True)
class Ended:
    """A run ended: with a loss, or with an error. `here` is false when another process trained it."""

    cell: Cell
    loss: float | None
    error: str
    here: bool
    left: int


@dataclass(frozen=True)
class Waiting:
    """What is left is at work in another process, and is waited for."""

    cells: tuple[Cell, ...]


SweepEvent = Advanced | Ended | Waiting
SweepListener = Callable[[SweepEvent], None]
Hire = Callable[[int, OnReport], Executor]
"""Makes an executor of so many workers that tells somebody what its jobs report."""


def run_sweep(
    plan: Plan,
    cells: Sequence[Cell],
    place: str,
    folder: Path,
    listener: SweepListener,
    hire: Hire = Processes,
) -> list[Ended]:
    """Train cells of a plan, by default as single-threaded processes side by side; the ones that failed.

    `place` is the store, `folder` holds checkpoints; the listener hears what happens, one event at a time.
    Runs that another process trains are waited for, and taken over when it dies. Killing this at any moment
    loses at most the work since the last checkpoints; the same call goes on from there, to the same bits.
    """
    if not cells:
        return []
    with RunStore(place) as store, _Crew(plan, cells, place, folder, listener, hire) as crew:
        for cell in cells:
            store.ensure(cell.request)
        todo = list(cells)
        while todo:
            elsewhere = crew.train(todo)
            if elsewhere:
                listener(Waiting(tuple(elsewhere)))
            todo = crew.wait(store, elsewhere)
    shutil.rmtree(folder / STARTS, ignore_errors=True)
    with suppress(OSError):  # it holds what is left of runs that failed
        folder.rmdir()
    return crew.failures


class _Crew:
    """The workers of a sweep, and what became of its cells."""

    def __init__(
        self,
        plan: Plan,
        cells: Sequence[Cell],
        place: str,
        folder: Path,
        listener: SweepListener,
        hire: Hire,
    ) -> None:
        self.seconds, self.place, self.folder = plan.grid.checkpoint_seconds, place, str(folder)
        self.cells = {cell.id: cell for cell in cells}
        self.left = len(cells)
        self.failures: list[Ended] = []
        self._listener, self._one_at_a_time = listener, threading.Lock()
        self._executor = hire(min(plan.workers, len(cells)), self._hear)

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.close()

    def train(self, cells: Sequence[Cell]) -> list[Cell]:
        """Train every cell that is free; those that another process holds."""
        futures = {self._submit(cell): cell for cell in cells}
        elsewhere = []
        for future in as_completed(futures):
            cell = futures[future]
            try:
                run, trained = future.result()
            except RhocError as error:
                self._end(cell, None, str(error), here=True)
            except Exception as error:
                self._end(cell, None, said(error), here=True)
            else:
                if run.state == "finished":
                    self._end(cell, run.loss, "", here=trained)
                else:
                    elsewhere.append(cell)
        return elsewhere

    def wait(self, store: RunStore, cells: Sequence[Cell]) -> list[Cell]:
        """Wait for runs of other processes; those that nobody holds any more."""
        held, free = list(cells), list[Cell]()
        while held and not free:
            time.sleep(_LOOK_SECONDS)
            for run in store.runs(ids=[cell.id for cell in held]):
                cell = self.cells[run.id]
                if run.state == "running" and not store.is_abandoned(run):
                    continue
                held.remove(cell)
                if run.state == "finished":
                    self._end(cell, run.loss, "", here=False)
                elif run.state == "failed":
                    self._end(cell, None, run.error or "it failed", here=False)
                else:
                    free.append(cell)
        return [*free, *held]

    def _submit(self, cell: Cell) -> Future[tuple[Run, bool]]:
        return self._executor.submit(
            carry_out, cell.experiment, self.place, cell.id, self.folder, checkpoint_seconds=self.seconds
        )

    def _hear(self, _: Future[Any], value: object) -> None:
        if isinstance(value, Progress):
            cell = self.cells[value.run]
            self._tell(Advanced(cell, value.step / value.steps, value.resumed / value.steps, value.loss))

    def _end(self, cell: Cell, loss: float | None, error: str, *, here: bool) -> None:
        self.left -= 1
        ended = Ended(cell, loss, error, here, self.left)
        if error:
            self.failures.append(ended)
        self._tell(ended)

    def _tell(self, event: SweepEvent) -> None:
        with self._one_at_a_time:
            self._listener(event)
