"""Coverage on models that nobody here wrote: `python tests/bench/coverage.py [--only NAME...] [--json FILE]`.

Every model is measured in a process of its own under a time limit. The table goes to
`tests/bench/results/coverage.json` and `coverage.md`; with --only, rows are printed and nothing is written
unless --json names a file. Needs `transformers`; without it only torch's own modules are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from architectures import Case
from coverage_table import page
from measures import MEASURES, Row, Trial
from torch_models import torch_cases
from transformers_models import transformers_cases

_STARTING = threading.Lock()
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measure the models that were asked for, all by default."""
    parser = argparse.ArgumentParser(description="What is captured and represented of many models.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of models or families")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, metavar="MEASURE", help="by default all")
    parser.add_argument("--limit", type=float, default=90.0, metavar="SECONDS", help="for one model")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="models at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    selected = [c for c in cases() if not options.only or c.name in options.only or c.family in options.only]
    if not selected:
        parser.error(f"no model or family is called {', '.join(options.only)}")
    warm()
    names, rows = tuple(options.measure or MEASURES), []
    with ThreadPoolExecutor(options.processes) as pool:
        for row in pool.map(lambda case: measured(case, names, options.limit), selected):
            rows.append(row)
            print(summary(row), flush=True)
    path = options.json or (None if options.only else RESULTS / "coverage.json")
    if path is not None:
        path.write_text(json.dumps(document(rows), indent=1) + "\n")
        path.with_suffix(".md").write_text(page(document(rows)))
    return 0


def warm() -> None:
    """Import once, for all processes to come, what is imported on first use."""
    MEASURES["compile"](Trial(next(torch_cases())))
    if importlib.util.find_spec("transformers") is not None:
        next(transformers_cases()).build()


def cases() -> Iterator[Case]:
    """Every model that can be built here."""
    yield from torch_cases()
    if importlib.util.find_spec("transformers") is not None:
        yield from transformers_cases()


def document(rows: list[Row]) -> dict[str, Any]:
    """The rows, and what they were measured with."""
    packages = ("torch", "transformers", "rhoc")
    return {
        "bench": "coverage",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
        "rows": rows,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def measured(case: Case, names: tuple[str, ...], limit: float) -> Row:
    """The row of one model, from a process of its own; what was measured before a time-out is kept."""
    context = multiprocessing.get_context("fork")
    row: Row = {"name": case.name, "family": case.family}
    with _STARTING:  # no other process is to hold the end that this one writes to
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(case, names, sender))
        process.start()
        sender.close()
    start = time.monotonic()
    try:
        while receiver.poll(max(0.0, limit - (time.monotonic() - start))):
            name, value = receiver.recv()
            row[name] = value
        row["timed out"] = next((name for name in names if name not in row), "build")
    except EOFError:
        process.join()
        if process.exitcode:
            row["crashed"] = process.exitcode
    finally:
        process.kill()
        process.join()
    row["seconds"] = round(time.monotonic() - start, 1)
    return row


def _measure(case: Case, names: tuple[str, ...], sender: Connection) -> None:
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # torch prints whole graphs when they fail
        os.dup2(nowhere, stream)
    try:
        trial = Trial(case)
        trial.model(**trial.kwargs)
    except Exception as error:
        sender.send(("build", _failure(error)))
        return
    sender.send(("parameters", sum(p.numel() for p in trial.model.parameters())))
    for name in names:
        try:
            sender.send((name, MEASURES[name](trial)))
        except Exception as error:
            sender.send((name, _failure(error)))
    sender.close()
    os._exit(0)  # without what the parent, of which this is a copy, has to do at its end


def _failure(error: Exception) -> Row:
    frames = traceback.extract_tb(error.__traceback__)[-7:]
    lines = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}: {f.line}" for f in frames]
    return {"error": f"{type(error).__name__}: {str(error)[:600]}", "trace": lines}


def summary(row: Row) -> str:
    """One line on the terminal."""
    parts = [f"{row['name']:34}{row['seconds']:6.1f} s"]
    compiled = row.get("compile", {})
    if "represented" in compiled:
        parts.append(f"{compiled['represented']:7.1%}")
    parts += [
        f"{name}: {value['error'][:150]}"
        for name, value in row.items()
        if isinstance(value, dict) and "error" in value
    ]
    parts += [f"{key} {row[key]}" for key in ("timed out", "crashed") if key in row]
    return "  ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
