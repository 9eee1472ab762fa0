"""Digits, another task than language: `python tests/bench/digits.py` trains two models in eight formats.

Written to `tests/bench/results/digits.json` and `digits.md`. `--quick` trains one seed for a few steps and
prints only. Runs take turns, format by format within a seed, so that seconds of one seed compare.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import digits_task
import torch
from digits_table import page
from torch import nn

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.task_reference import TaskReference
from rhoc.runtime.determinism import seeded
from rhoc.runtime.train import TrainSettings, train

RESULTS = Path(__file__).parent / "results"
FORMATS = ("dense", "2of4", "2of4-srste", "int2", "ternary", "binary", "int2-a2", "int1-a1")
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "mlp": (digits_task.mlp, ["first", "middle", "last"]),
    "cnn": (digits_task.cnn, ["first", "middle", "middle2", "last"]),
}
ENDS = ("first", "last")
UNFIT = {("cnn", "int2-a2"), ("cnn", "int1-a1")}  # no rotation takes the one channel that an image has
STEPS, SEEDS, RATE = 400, 3, 0.003

Row = dict[str, Any]


def main() -> int:
    """Train everything, in about three minutes of one processor."""
    parser = argparse.ArgumentParser(description="Digits by two models in compressed formats.")
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps, nothing written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rows = []
    for row in runs(20 if quick else STEPS, 1 if quick else SEEDS):
        print(
            "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
            flush=True,
        )
        rows.append(row)
    if not quick:
        write(rows)
    return 0


def runs(steps: int, seeds: int) -> Iterator[Row]:
    """Every model in every format from every seed, with first and last layer kept dense and without."""
    for model in MODELS:
        for seed in range(seeds):
            dense: nn.Module | None = None
            for name in FORMATS:
                for kept in (True,) if name == "dense" or (model, name) in UNFIT else (True, False):
                    row, trained = run(model, name, kept, seed, steps, dense)
                    dense = trained if name == "dense" else dense
                    yield row


def run(
    model: str, name: str, kept: bool, seed: int, steps: int, dense: nn.Module | None
) -> tuple[Row, nn.Module]:
    """One run and the form it trained. `dense` is the dense model of the same seed, trained."""
    make, layers = MODELS[model]
    with seeded(seed):
        compiled = rhoc.compile(make(), spec(name, [path for path in layers if not kept or path not in ENDS]))
    student = compiled.trainable()
    settings = TrainSettings(tokens=steps * digits_task.BATCH, learning_rate=RATE, seed=seed)
    task = TaskReference(digits_task.__file__).build()
    start = time.thread_time()
    result = train(student, task, settings)
    seconds = time.thread_time() - start
    seen = digits_task.predictions(compiled.packed(student))
    ahead = digits_task.predictions(student.eval())
    rounded = seen if dense is None else digits_task.predictions(compiled.packed(dense.state_dict()))
    return {
        "model": model,
        "format": name,
        "dense_ends": kept,
        "seed": seed,
        "accuracy": digits_task.accuracy(seen),
        "loss": result.loss,
        "rounded": digits_task.accuracy(rounded),
        "differ": int((seen != ahead).sum()),
        "bits": bits(compiled),
        "seconds": seconds,
    }, student


def spec(name: str, layers: list[str]) -> dict[str, Any]:
    """A shipped format on some layers of a model, and no others."""
    (rule,) = rhoc.load_spec(name).to_document()["rules"]
    return {"version": 1, "name": name, "rules": rule | {"targets": layers, "ignore": []}}


def bits(compiled: Compiled) -> float:
    """Stored bits for each number of the weight matrices, those that stayed dense among them."""
    held = [(d.assignment.weight, d.held) for d in compiled.decisions if d.held.tensor.dim() > 1]
    stored = sum(w.nbytes(h.matrix_shape, h.tensor.dtype) for w, h in held)
    return 8 * stored / sum(h.tensor.numel() for _, h in held)


def write(rows: list[Row]) -> None:
    """Both files, with what is to be known about the machine."""
    document = {
        "bench": "digits",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {"cpu": platform.processor() or platform.machine(), "threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": {"steps": STEPS, "batch": digits_task.BATCH, "learning_rate": RATE},
        "rows": rows,
    }
    (RESULTS / "digits.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "digits.md").write_text(page(rows))


if __name__ == "__main__":
    sys.exit(main())
