"""Calls of the command line: in this process for what it says, as a process where a process matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rhoc.compiler.cli import main

LLAMA = "rhoc.runtime.llama:llama(width=16)"
TINY_TRAINING = {"batch_size": 2, "context": 32, "eval_tokens": 1024}


@dataclass(frozen=True)
class Said:
    """What a call came to."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


@dataclass(frozen=True)
class CommandLine:
    """Calls `rhoc` in this process, in a folder of its own."""

    capture: pytest.CaptureFixture[str]
    folder: Path

    def __call__(self, *arguments: object) -> Said:
        """Call with arguments; whatever is raised but an exit is an error of the test."""
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = self.capture.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)


def grid_text(**changed: object) -> str:
    """A grid of one tiny run as JSON, which is YAML."""
    grid: dict[str, object] = {
        "version": 1,
        "name": "tiny",
        "model": "rhoc.runtime.llama:llama",
        "training": TINY_TRAINING,
        "runs": [{"specs": "dense", "sizes": {"width": 16}, "tokens": 640}],
    }
    return json.dumps(grid | changed)


@contextmanager
def process(*arguments: object, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`rhoc` as a process in a group of its own, which is ended when the block is left."""
    call = [sys.executable, "-m", "rhoc.compiler.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        call, cwd=folder, env=single_threaded(), text=True, stdout=pipe, stderr=pipe, start_new_session=True
    ) as started:
        try:
            yield started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def single_threaded(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment with one thread a process, and without settings of rhoc."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RHOC_")}
    return kept | {"OMP_NUM_THREADS": "1"} | dict(more or {})
