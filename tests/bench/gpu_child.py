"""Measures items of the bench on CUDA, one after the other: a process of its own, since a fault of CUDA ends it.

`python gpu_child.py [--warm] [--tiny] FILE ITEM...` appends a line of JSON to FILE when it begins an item, and when
it has its row. With --warm every method runs once, is compiled and checked, and is not timed.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

import torch
from gpu_children import POISONED
from gpu_unit import Job, unit_of
from gpu_units import units
from timing import Case, Timing, measure

Row = dict[str, object]
Say = Callable[[Mapping[str, object]], None]
_ROUNDS, _SECONDS = 5, 0.02
_FAR = 0.05  # a relative error that no rounding explains: operands have 8 bits
_COPIED, _SIZE = 1 << 29, 8192


def main(arguments: list[str]) -> int:
    """Rows of all items; ends with 3 where CUDA takes no more work."""
    warm, tiny = "--warm" in arguments, "--tiny" in arguments
    file, *items = (argument for argument in arguments if not argument.startswith("--"))
    known, device = units(tiny), "cpu" if tiny else "cuda"
    torch.manual_seed(0)
    with Path(file).open("a") as lines:

        def say(message: Mapping[str, object]) -> None:
            lines.write(json.dumps(message) + "\n")
            lines.flush()

        rates = {"copy": 1e12, "bfloat16": 1e15} if tiny else {} if warm else _rates()
        say({"rates": rates})
        for name, group in groupby(items, unit_of):
            asked = list(group)
            say({"item": asked[0], "building": True})
            try:
                build: Callable[[str], Job] = known[name].build(device, tiny)
            except Exception as error:  # of whatever a format or another library raises
                for item in asked:
                    say({"item": item, "row": {"failure": _told(error)}})
                if not _healthy(device):
                    return POISONED
                continue
            for item in asked:
                say({"item": item})
                say({"item": item, "row": _row(item, build, device, None if warm else rates)})
                if not _healthy(device):
                    return POISONED
            del build
            _freed(device)
    return 0


def _row(item: str, build: Callable[[str], Job], device: str, rates: Mapping[str, float] | None) -> Row:
    """What was found, or why nothing was."""
    try:
        job = build(item.rpartition("|")[2])
        row = _checked(job)
        if device == "cuda":
            torch.cuda.synchronize()
        return row if rates is None or "failure" in row else row | _timed(job, device, rates)
    except Exception as error:
        return {"failure": _told(error)}


def _checked(job: Job) -> Row:
    row: Row = {"kernel": job.kernel}
    if job.checked is None:
        job.baseline(0)
        job.method(0)
        return row
    exact, found = (tensor.float() for tensor in job.checked())
    error = float((found - exact).norm() / exact.norm())
    row["error"] = float(f"{error:.3g}")
    return row if error <= _FAR else row | {"failure": f"a wrong result: its relative error is {error:.3g}"}


def _timed(job: Job, device: str, rates: Mapping[str, float]) -> Row:
    """Medians of interleaved rounds; where no graph can be captured, of launches, and the row says so."""
    captured = job.capture
    try:
        timings = _measured(job, device, captured)
    except RuntimeError:
        if not captured:
            raise
        captured, timings = False, _measured(job, device, False)
    ours, baseline = timings["method"], timings["baseline"]
    row: Row = {
        "us": round(ours.median * 1e6, 2),
        "least_us": round(ours.minimum * 1e6, 2),
        "baseline_us": round(baseline.median * 1e6, 2),
        "times": float(f"{baseline.median / ours.median:.4g}"),
        "captured": captured,
    }
    if job.work is not None:
        row |= {
            "share": round(job.work.seconds(rates) / ours.median, 3),
            "bytes": round(job.work.moved),
            "operations": round(job.work.operations),
            "products": job.work.kind,
        }
    if job.baseline_work is not None:
        row["baseline_share"] = round(job.baseline_work.seconds(rates) / baseline.median, 3)
    return row


def _measured(job: Job, device: str, captured: bool) -> dict[str, Timing]:
    methods, cuda = {"baseline": job.baseline, "method": job.method}, device == "cuda"
    case = Case("", methods, capture=captured, turns=job.turns, rounds=None if cuda else 1)
    return measure(case, cuda=cuda, rounds=_ROUNDS, seconds=_SECONDS)


def _rates() -> dict[str, float]:
    """Bytes moved by a copy, and operations of products by type, in a second; a type that fails is left out."""
    block = torch.randn(_COPIED, device="cuda", dtype=torch.bfloat16)
    a, b = (torch.randn(_SIZE, _SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    codes = [t.mul(40).to(torch.int8) for t in (a, b.T.contiguous())]
    narrow = [t.to(torch.float8_e4m3fn) for t in (a, b.T.contiguous())]
    one, target = torch.ones((), device="cuda"), torch.empty_like(block)
    methods: dict[str, Callable[[int], object]] = {
        "copy": lambda call: target.copy_(block),
        "bfloat16": lambda call: a @ b,
        "int8": lambda call: torch._int_mm(codes[0], codes[1].T),
        "fp8": lambda call: torch._scaled_mm(narrow[0], narrow[1].T, one, one, out_dtype=torch.bfloat16),
    }
    rates = {}
    for name, method in methods.items():
        try:
            timing = measure(Case(name, {name: method}), cuda=True, rounds=_ROUNDS, seconds=_SECONDS)[name]
        except RuntimeError as error:
            print(f"no rate of {name}: {_told(error)}", flush=True)
            continue
        rates[name] = (2.0 * block.nbytes if name == "copy" else 2.0 * _SIZE**3) / timing.median
    return rates


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def _healthy(device: str) -> bool:
    """Whether CUDA still works: after an illegal access every call fails."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def _freed(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
