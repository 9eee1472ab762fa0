"""What passes are worth on a trained model, and what compiling costs: `python tests/bench/passes.py`.

`--only NAME...` measures some of the cases and prints them; `--time` only compiles, and keeps the other figures.
Both go to `tests/bench/results/passes-cpu.json` and `passes-cpu.md`. The first run trains a model for a minute.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from gpt2_shape import Gpt2
from passes_table import page
from trained_model import Trained, plant_outliers, trained

import rhoc
from rhoc.compiler.compile import Compiled

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def main() -> int:
    """Measure the cases that were asked for, all by default."""
    parser = argparse.ArgumentParser(description="What passes are worth, and what compiling costs.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases to measure and print")
    parser.add_argument("--time", action="store_true", help="only compile")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    if options.time:
        rows = json.loads((RESULTS / "passes-cpu.json").read_text())["rows"]
    else:
        for row in quality(trained(), options.only):
            print(_text(row), flush=True)
            rows.append(row)
    if options.only:
        return 0
    times = []
    for row in compile_times():
        print(_text(row), flush=True)
        times.append(row)
    write(rows, times)
    return 0


def _text(row: Row) -> str:
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if v != "")
    return "  ".join(shown)


# What passes are worth


@dataclass(frozen=True)
class Case:
    """A spec on the model of a section: the weights' chain, the inputs' and what passes are listed."""

    section: str
    name: str
    weights: object
    passes: tuple[object, ...] = ()
    inputs: object = None
    budget: dict[str, Any] | None = None
    planted: bool = False
    remarks: Callable[[Compiled], str] = field(default=lambda compiled: "")

    @property
    def spec(self) -> dict[str, Any]:
        """Every linear layer but the head."""
        rule = {"targets": "Linear", "ignore": "lm_head", "weights": self.weights}
        rule |= {} if self.inputs is None else {"input_activations": self.inputs}
        more = {} if self.budget is None else {"budget": self.budget}
        return {"version": 1, "rules": rule, "passes": list(self.passes), **more}


def channel(bits: int) -> str:
    """Ints with a scale for each row."""
    return f"quantize(int{bits}, channel)"


def inputs(bits: int, strategy: str = "tensor") -> dict[str, Any]:
    """Ints with one scale for each tensor, or each token."""
    return {"kind": "quantize", "num_bits": bits, "strategy": strategy, "dynamic": True}


OFFERED = [channel(bits) for bits in (2, 3, 4, 8)]
ADDED: dict[str, Any] = {"kind": "fold_rotations", "add": "hadamard"}
AWEQ = {"kind": "equalize", "rule": "aweq"}


def online(compiled: Compiled) -> str:
    """How many weights are still rotated when the model runs."""
    found = [d.assignment.weight for d in compiled.decisions if not d.assignment.weight.is_dense]
    return f"{sum(bool(w.rotation.stages) for w in found)} of {len(found)} rotate inputs online"


def choice(compiled: Compiled) -> str:
    """What was chosen how often."""
    assert compiled.allocation is not None
    return compiled.allocation.summary


def cases() -> Iterator[Case]:
    """Every case, section by section; the first of a section is what the others are held against."""
    for bits in (4, 3, 2):
        yield Case(f"int{bits}", "round to nearest", channel(bits))
        yield Case(f"int{bits}", "calibrate (gptq)", channel(bits), ("calibrate",))
        scaled = f"scale(columns) >> {channel(bits)}"  # where awq keeps the scales that it finds
        yield Case(f"int{bits}", "scale", scaled)
        yield Case(f"int{bits}", "scale, calibrate (awq)", scaled, ({"kind": "calibrate", "method": "awq"},))
        rotated = f"hadamard(64) >> {channel(bits)}"
        yield Case(f"int{bits}", "hadamard, online", rotated, remarks=online)
        yield Case(f"int{bits}", "hadamard, fold_rotations", rotated, ("fold_rotations",), remarks=online)
        yield Case(
            f"int{bits}",
            "hadamard, fold_rotations, calibrate",
            rotated,
            ("fold_rotations", "calibrate"),
            remarks=online,
        )
        yield Case(f"int{bits}", "fold_rotations adds hadamard", channel(bits), (ADDED,))
        yield Case(f"int{bits}", "dilate", channel(bits), ("dilate",))
    yield from _inputs(False)
    yield from _inputs(True)
    for chain in ("sparsify(2:4)", f"sparsify(2:4) >> {channel(4)}"):
        yield Case(chain, "magnitude", chain)
        yield Case(chain, "calibrate (sparse_gptq)", chain, ("calibrate",))
    chain = f"{channel(2)} + product(8)"
    yield Case("low rank", "int2", channel(2))
    yield Case("low rank", "int2 + product(8)", chain)
    yield Case("low rank", "int2 + product(8), calibrate (low_rank)", chain, ("calibrate",))
    yield Case("low rank", "int4, calibrate", channel(4), ("calibrate",))
    yield from _budgets()


def _inputs(planted: bool) -> Iterator[Case]:
    for bits in (8, 4):
        section = f"w{bits}a8, one scale per input" + (", outliers planted" if planted else "")
        listed: dict[str, tuple[object, ...]] = {
            "round to nearest": (),
            "fold_norms": ("fold_norms",),
            "equalize (smoothquant)": ("equalize",),
            "equalize (aweq)": (AWEQ,),
            "fold_rotations adds hadamard": (ADDED,),
            "calibrate": ("calibrate",),
            "fold_rotations, equalize, calibrate": (ADDED, "equalize", "calibrate"),
        }
        for name, passes in listed.items():
            yield Case(section, name, channel(bits), passes, inputs(8), planted=planted)


def _budgets() -> Iterator[Case]:
    for section, limit in (("as many bytes as int3", 3.0), ("half a bit more than int3", 3.5)):
        yield Case(section, "int3 everywhere", channel(3))
        yield Case(section, "int3 everywhere, calibrate", channel(3), ("calibrate",))
        for measure in ("gaussian", "weight_error", "output_error", "relative_output_error"):
            budget = {"limit": limit, "candidates": OFFERED, "measure": measure}
            for passes in ((), ("calibrate",)):
                name = ", ".join((f"budget by {measure}", *passes))
                yield Case(section, name, channel(3), passes, budget=budget, remarks=choice)


def quality(model: Trained, only: list[str] | None) -> Iterator[Row]:
    """Loss and output error of every case on held-out tokens."""
    yield {"section": "dense", "name": "dense", "loss": model.loss(model.model), "error": 0.0, "bits": 32.0}
    harder = copy.deepcopy(model.model)
    plant_outliers(harder)
    scales = _bits(rhoc.compile(model.model, Case("", "", channel(3)).spec)) - 3
    for case in cases():
        if only and not any(word in f"{case.section}, {case.name}" for word in only):
            continue
        spec = case.spec
        if case.budget is not None:
            spec["budget"] = case.budget | {"limit": f"{case.budget['limit'] + scales + 1e-6:.9f} bits"}
        batches = [(batch,) for batch in model.calibration]
        start = time.perf_counter()
        compiled = rhoc.compile(
            harder if case.planted else model.model, spec, model.example, calibration=batches
        )
        seconds = time.perf_counter() - start
        reference = compiled.reference()
        yield {
            "section": case.section,
            "name": case.name,
            "loss": model.loss(reference),
            "error": model.error(reference),
            "bits": _bits(compiled),
            "seconds": round(seconds, 2),
            "remarks": case.remarks(compiled),
        }


def _bits(compiled: Compiled) -> float:
    """Stored bits of represented weights, over their number."""
    found = [d for d in compiled.decisions if not d.assignment.weight.is_dense]
    stored = sum(d.assignment.weight.nbytes(d.held.matrix_shape, d.held.tensor.dtype) for d in found)
    return 8 * stored / sum(d.held.tensor.numel() for d in found)


# What compiling costs


def compile_times() -> Iterator[Row]:
    """Processor seconds on one thread to compile a GPT-2 and build its train form: the least of two."""
    rule = {"targets": ["Conv1D"], "weights": channel(4), "input_activations": inputs(8, "token")}
    plain = {"version": 1, "rules": rule}
    for layers in (3, 6, 12, 24):
        torch.manual_seed(0)
        model = Gpt2(layers=layers)
        count = sum(p.numel() for p in model.parameters())
        named: dict[str, dict[str, Any]] = {"no passes": plain}
        if layers <= 12:
            named["fold_norms"] = plain | {"passes": ["fold_norms"]}
        for name, spec in named.items():
            for example in (None,) if name != "no passes" else (None, model.example_inputs):
                seconds = [_compiled(model, spec, example) for _ in range(2)]
                best = min(seconds, key=sum)
                yield {
                    "layers": layers,
                    "parameters": count,
                    "passes": name,
                    "example": "given"
                    if example is not None
                    else "the model's own"
                    if name != "no passes"
                    else "none",
                    "compile": round(best[0], 2),
                    "trainable": round(best[1], 2),
                    "together": round(sum(best), 2),
                }


def _compiled(model: torch.nn.Module, spec: dict[str, Any], example: Any) -> tuple[float, float]:
    start = time.process_time()
    compiled = rhoc.compile(model, spec, example)
    middle = time.process_time()
    compiled.trainable()
    return middle - start, time.process_time() - middle


def write(rows: list[Row], times: list[Row]) -> None:
    """Both files, with what is to be known about the machine."""
    document = {
        "bench": "passes",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {"cpu": platform.processor() or platform.machine(), "threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
        "compile": times,
    }
    (RESULTS / "passes-cpu.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "passes-cpu.md").write_text(page(rows, times))


if __name__ == "__main__":
    sys.exit(main())
