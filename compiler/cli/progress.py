"""How a sweep goes on, for a person, on standard error: a line for each run that ends, a bar on terminals."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..duration import duration
from .output import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..sweep import Cell, Plan
    from ..sweep_run import Ended, SweepEvent


class SweepProgress:
    """A listener of `run_sweep` for these cells of a plan; use it in a `with` statement."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        from ..cost import Pace

        self._pace = Pace({cell.id: plan.seconds_each.get(cell.id, 0.0) for cell in cells}, plan.workers)
        self._total = len(cells)
        self._done, self._waited = 0, False
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> SweepProgress:
        if sys.stderr.isatty() and self._total:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %  {task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True)
            self._task = self._bar.add_task(f"0/{self._total} runs", total=1.0)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: SweepEvent) -> None:
        """Hear one event."""
        from ..sweep_run import Advanced, Ended, Waiting

        match event:
            case Advanced(cell=cell, share=share, resumed=resumed):
                self._pace.advance(cell.id, share, time.monotonic(), resumed)
                self._draw()
            case Ended():
                self._pace.end(event.cell.id, time.monotonic(), trained=event.here and not event.error)
                self._ended(event)
            case Waiting(cells=cells) if not self._waited:
                self._waited = True
                self._line(f"  {len(cells)} runs are at work in another process; waiting for them")

    def _ended(self, event: Ended) -> None:
        self._done = self._total - event.left
        count = f"{self._done:>{len(str(self._total))}}/{self._total}"
        outcome = "failed" if event.loss is None else f"loss {event.loss:.4f}"
        where = "" if event.here else " (by another process)"
        rest = self._left() if event.left else ""
        self._line(f"  {count}  {outcome}  {event.cell.label}{where}{rest and ', '}{rest}")
        self._draw()

    def _draw(self) -> None:
        if self._bar is not None and self._task is not None:
            text = ", ".join(filter(None, (f"{self._done}/{self._total} runs", self._left())))
            self._bar.update(self._task, completed=self._pace.done, description=text)

    def _left(self) -> str:
        seconds = self._pace.left(time.monotonic())
        return "" if seconds is None else f"about {duration(seconds)} left"

    def _line(self, text: str) -> None:
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
