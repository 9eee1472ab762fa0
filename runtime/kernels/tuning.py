"""Which kernel was fastest here for how many rows: measured once by `rhoc doctor --tune`, read by `select`.

The table is a JSON file in the user's cache folder, or where RHOC_TUNED says; RHOC_TUNED=0 leaves it aside.
It holds for one processor or GPU, number of threads and version of torch; under others it is not used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..digest import digest_bytes
from ..native.build import cache_folder, processor
from .base import Call, Kernel

SWITCH = "RHOC_TUNED"
_FAR = 4.0  # a measured weight this many times larger or smaller says nothing of another


@dataclass(frozen=True)
class Measured:
    """The fastest kernel by the largest number of rows that it was the fastest for; the last entry's number
    is of all that are more, too."""

    operation: str
    weight: str
    input: str
    shape: tuple[int, int]
    dtype: str
    device: str
    fastest: tuple[tuple[int, str], ...]


def file() -> Path | None:
    """Where the table is; None when it is to be left aside."""
    asked = os.environ.get(SWITCH)
    if asked == "0":
        return None
    try:
        return Path(asked) if asked else cache_folder() / "tuned.json"
    except OSError:
        return None


def machine() -> str:
    """What the table holds for: processor or GPU, threads, and torch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = f"{processor()} {gpu} torch {torch.__version__} threads {torch.get_num_threads()}"
    return digest_bytes(known.encode())


def write(path: Path, entries: Sequence[Measured]) -> None:
    """Write the table, whole or not at all."""
    working = path.with_name(f".{path.name}.{os.getpid()}")
    working.write_text(json.dumps({"machine": machine(), "entries": [asdict(each) for each in entries]}))
    os.replace(working, path)
    _read.cache_clear()


def measured(call: Call) -> Measured | None:
    """What was measured for this call, or for a weight that is stored alike and nearly as large."""
    path = file()
    stamp = _stamp(path)
    if path is None or stamp is None:
        return None
    alike = [each for each in _read(path, stamp) if _same(each, call)]
    found = min(alike, key=lambda each: _apart(each, call), default=None)
    return found if found is not None and _apart(found, call) <= math.log(_FAR) else None


def described(call: Call) -> tuple[str, str, str, str, str]:
    """The call's operation, weight, input, dtype and device as the table names them."""
    weight = str(call.representation)
    entering = f"{call.input} | {call.rotation}" if call.operation == "input_linear" else ""
    return call.operation, weight, entering, str(call.dtype).removeprefix("torch."), call.device


def _same(each: Measured, call: Call) -> bool:
    return (each.operation, each.weight, each.input, each.dtype, each.device) == described(call)


def _apart(each: Measured, call: Call) -> float:
    return abs(math.log(math.prod(each.shape) / max(1, math.prod(call.shape))))


def _stamp(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_mtime_ns
    except OSError:
        return None


@lru_cache(maxsize=2)
def _read(path: Path, stamp: int) -> tuple[Measured, ...]:
    """The table's entries; none of a file that is damaged or of another machine."""
    try:
        document = json.loads(path.read_text())
        if document["machine"] != machine():
            return ()
        return tuple(_entry(each) for each in document["entries"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _entry(data: Mapping[str, Any]) -> Measured:
    fastest = tuple((int(rows), str(name)) for rows, name in data["fastest"])
    return Measured(**{**data, "shape": tuple(data["shape"]), "fastest": fastest})


@dataclass(frozen=True)
class ByRows(Kernel):
    """The kernel that was measured as the fastest for as many rows as there are."""

    operation: str  # type: ignore[misc]
    chosen: tuple[tuple[int, Kernel], ...]

    name: ClassVar[str] = "tuned"

    @property
    def layout(self) -> str:
        return " ".join(dict.fromkeys(kernel.layout for _, kernel in self.chosen))

    def __str__(self) -> str:
        *few, (_, last) = self.chosen
        return ", ".join([*(f"{kernel.name} to {rows} rows" for rows, kernel in few), last.name])

    def refuse(self, call: Call) -> str | None:
        return None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = dict(stored)
        for _, kernel in self.chosen:
            found |= kernel.prepare(call, stored)
        return found

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        rows = x.numel() // max(1, call.shape[-1])
        kernel = next((kernel for limit, kernel in self.chosen if rows <= limit), self.chosen[-1][1])
        return kernel.run(call, x, stored, bias)


def by_rows(call: Call, found: Measured, candidates: Sequence[Kernel]) -> Kernel | None:
    """The candidates by rows as they were measured, or the one that is the fastest for all; None where one
    that was measured is no candidate any more."""
    by_name = {kernel.name: kernel for kernel in candidates}
    if any(name not in by_name for _, name in found.fastest):
        return None
    chosen = tuple((rows, by_name[name]) for rows, name in found.fastest)
    return ByRows(call.operation, chosen) if len(chosen) > 1 else chosen[0][1]
