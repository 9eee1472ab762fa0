"""Processes that measure items of the bench: one that dies or hangs loses the item it was at, and no other."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_unit import unit_of

Hear = Callable[[Mapping[str, Any]], None]
POISONED = 3  # the exit code of a process that said all it could, and in which CUDA does no more work
_TICK, _TOLD = 0.05, 300  # seconds; characters of what a process said last


@dataclass
class Child:
    """A process over items; what it says is in `lines`, what it prints in `printed`."""

    process: subprocess.Popen[bytes]
    lines: Path
    printed: Path
    left: list[str]
    read: int = 0
    answered: bool = False
    heard: float = field(default_factory=time.monotonic)
    at: str | None = None
    building: bool = False

    @classmethod
    def start(cls, command: Sequence[str], items: Sequence[str], folder: Path, number: int) -> Child:
        """A new process."""
        lines, printed = folder / f"{number}.jsonl", folder / f"{number}.log"
        lines.write_text("")
        with printed.open("wb") as log:
            process = subprocess.Popen([*command, str(lines), *items], stdout=log, stderr=subprocess.STDOUT)
        return cls(process, lines, printed, list(items))

    def hear(self, hear: Hear) -> None:
        """Pass on whole lines that it has added."""
        with self.lines.open("rb") as stream:
            stream.seek(self.read)
            added = stream.read()
        whole = added[: added.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            message = json.loads(line)
            self.heard = time.monotonic()
            if "item" in message:
                self.at, self.building = message["item"], message.get("building", False)
            if "row" in message:
                self.left.remove(message["item"])
                self.at, self.answered = None, True
            hear(message)

    def lost(self, why: str) -> list[dict[str, Any]]:
        """Rows of what is lost with it: the item it was at, or all of a unit that it was building, or, where
        it has not begun any or ended too early, all that is left."""
        said = self.printed.read_text(errors="replace").strip()[-_TOLD:]
        if self.at is None:
            gone = [] if self.process.returncode == POISONED and self.answered else list(self.left)
        elif self.building:
            gone = [item for item in self.left if unit_of(item) == unit_of(self.at)]
        else:
            gone = [self.at]
        self.left = [item for item in self.left if item not in gone]
        return [{"item": item, "row": {"failure": f"{why}: {said}"}} for item in gone]

    def kill(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.wait()


@dataclass
class Children:
    """Runs `command` with a file for its lines and the items, in as many processes as there are lanes.

    A process that says nothing for `patience` seconds is ended. `until` is a time of `time.monotonic`.
    """

    command: Sequence[str]
    folder: Path
    patience: float
    until: float
    count: int = 0

    def work(self, options: Sequence[str], lanes: Sequence[Sequence[str]], hear: Hear) -> bool:
        """Hand every line to `hear`; whether all items were worked on in time."""
        running = [self._start(options, lane) for lane in lanes if lane]
        try:
            while running and time.monotonic() < self.until:
                time.sleep(_TICK)
                running = [kept for child in running if (kept := self._looked_after(options, child, hear))]
            for child in running:
                child.hear(hear)
        finally:
            for child in running:
                child.kill()
        return not running

    def _start(self, options: Sequence[str], items: Sequence[str]) -> Child:
        self.count += 1
        return Child.start([*self.command, *options], items, self.folder, self.count)

    def _looked_after(self, options: Sequence[str], child: Child, hear: Hear) -> Child | None:
        """The child while it runs, one in its place that goes on with what it has left, or none."""
        ended = child.process.poll()
        child.hear(hear)
        if ended is None:
            if time.monotonic() - child.heard < self.patience:
                return child
            child.kill()
        if child.left:
            why = f"no answer in {self.patience:.0f} s" if ended is None else _ending(ended)
            for message in child.lost(why):
                hear(message)
        return self._start(options, child.left) if child.left else None


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
