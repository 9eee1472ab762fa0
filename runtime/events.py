"""What training says while it runs, and who may listen.

`train` calls a listener with each event as it happens. A listener must not change the model. Events are the
truth about a run's progress; a progress bar, a file of JSON lines and a database mirror are all listeners.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Stepped:
    """One optimiser step was taken. `step` counts steps done, `loss` is of its batch (nats per token)."""

    step: int
    steps: int
    tokens: int
    loss: float
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True)
class Skipped:
    """A step was not taken, because its loss or gradient was not finite. `step` counts it as done."""

    step: int
    steps: int
    reason: str


@dataclass(frozen=True)
class Evaluated:
    """The validation loss after `step` steps (nats per token)."""

    step: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint of `step` steps is safely on disk."""

    step: int
    seconds: float


@dataclass(frozen=True)
class Resumed:
    """Training goes on from a checkpoint of `step` steps; `note` says so when it is not the newest."""

    step: int
    note: str = ""


@dataclass(frozen=True)
class Finished:
    """Training is over."""

    steps: int
    tokens: int
    loss: float
    seconds: float


Event = Stepped | Skipped | Evaluated | Saved | Resumed | Finished
Listener = Callable[[Event], None]


def together(*listeners: Listener) -> Listener:
    """One listener that tells several, in order."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


def document(event: Event) -> dict[str, object]:
    """An event as plain JSON: its kind (the lower-case class name) and its fields."""
    return {"event": type(event).__name__.lower(), **asdict(event)}


class _Closing(ABC):
    """A listener that holds something open; use it in a `with` statement."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Hear one event."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held. Called at the end of the `with` statement, also after an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@final
class JsonLines(_Closing):
    """Appends events to a file, one JSON object a line. Steps are thinned to one in `every`."""

    def __init__(self, path: Path, every: int = 1) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._every = every

    def __call__(self, event: Event) -> None:
        """Append the event; each line is flushed, so that a killed run leaves whole lines."""
        if isinstance(event, Stepped) and event.step % self._every and event.step != event.steps:
            return
        self._file.write(json.dumps(document(event)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@final
class ConsoleProgress(_Closing):
    """Progress for a person, on standard error: a bar with loss, tokens per second and time left.

    Where standard error is no terminal it prints one line every `seconds` instead.
    """

    def __init__(self, title: str = "", console: Console | None = None, seconds: float = 5.0) -> None:
        self._console = console or Console(stderr=True, file=sys.stderr)
        self._title, self._seconds = title, seconds
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Show the event."""
        match event:
            case Stepped():
                self._step(event)
            case Skipped(step=step, reason=reason):
                self._say(f"step {step} was skipped: {reason}")
            case Evaluated(step=step, loss=loss):
                self._say(f"step {step}: validation loss {loss:.4f}")
            case Resumed(step=step, note=note):
                self._say(f"resumed at step {step}" + (f"; {note}" if note else ""))
            case Finished(tokens=tokens, loss=loss, seconds=seconds):
                self._say(f"done: loss {loss:.4f} after {tokens} tokens in {seconds:.1f} s")
            case Saved():
                pass

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()

    def _step(self, event: Stepped) -> None:
        if self._console.is_terminal:
            self._draw(event)
        elif time.monotonic() - self._last_line >= self._seconds:
            self._last_line = time.monotonic()
            left = (event.steps - event.step) * event.tokens / event.step / event.tokens_per_second
            self._say(
                f"step {event.step}/{event.steps} loss {event.loss:.4f} "
                f"{event.tokens_per_second:,.0f} tokens/s, {left:.0f} s left"
            )

    def _draw(self, event: Stepped) -> None:
        if self._bar is None or self._task is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("loss {task.fields[loss]:.4f}"),
                TextColumn("{task.fields[speed]:,.0f} tokens/s"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task(
                self._title or "train", total=event.steps, loss=event.loss, speed=0.0
            )
            self._bar.start()
        self._bar.update(self._task, completed=event.step, loss=event.loss, speed=event.tokens_per_second)

    def _say(self, text: str) -> None:
        self._console.print(f"{self._title}: {text}" if self._title else text, highlight=False, markup=False)
