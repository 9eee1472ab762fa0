"""Ratios of time on one CPU thread: `python tests/bench/run.py [--quick] [NAME...]`.

Large tensors are measured honestly only when glibc keeps its pages
instead of asking the kernel for zeroed ones every time; `make bench` sets the three variables that do it:
MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=17179869184, MALLOC_TOP_PAD_=1073741824.
Results go to `tests/bench/results/NAME-cpu.json`, with hardware, versions and date, or to NAME-cpu-avx2.json and the
like where the processor has no AVX-512; --quick only prints.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from timing import Case, Timing, measure

BENCHES = (
    "linear",
    "cpu_linear",
    "cpu_int8",
    "cpu_formats",
    "cache_attention",
    "projection",
    "fused",
    "training",
    "encode",
    "laws",
)
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the benches that were asked for, one table each."""
    parser = argparse.ArgumentParser(description="Ratios of time on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds; writes nothing")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHES)
    if unknown:
        parser.error(f"no bench is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    torch.set_num_threads(1)
    if not options.quick and any(name not in os.environ for name in MALLOC):
        print("page faults are part of these figures: `make bench` keeps them out", file=sys.stderr)
    for name in options.names or BENCHES:
        torch.manual_seed(0)
        rows = [row for case in _cases(name, options.quick) for row in report(case, options.quick)]
        if not options.quick:
            write(name, rows)
    return 0


def _cases(name: str, quick: bool) -> Iterator[Case]:
    print(f"\n{name}: time of a call, and times that of the first method", flush=True)
    cases: Iterator[Case] = importlib.import_module(name).cases(quick)
    return cases


def report(case: Case, quick: bool) -> list[dict[str, object]]:
    """Measure a case, print it, and return its rows."""
    timings = measure(case, cuda=False, rounds=3 if quick else 9, seconds=0.01 if quick else 0.1)
    print(f"\n  {case.name}")
    return [_row(case, name, timings) for name in timings]


def _row(case: Case, name: str, timings: dict[str, Timing]) -> dict[str, object]:
    timing, baseline = timings[name], timings[next(iter(timings))]
    ratio, ratio_of_minima = timing.median / baseline.median, timing.minimum / baseline.minimum
    error = (case.errors or {}).get(name)
    accuracy = "" if error is None else f"   error {error:.1e}"
    minima = f"(minima {ratio_of_minima:.2f} x)"
    print(f"    {name:30} {timing.median * 1e6:12.1f} us {ratio:8.2f} x   {minima}{accuracy}", flush=True)
    row = {
        "case": case.name,
        "method": name,
        "median_us": round(timing.median * 1e6, 2),
        "minimum_us": round(timing.minimum * 1e6, 2),
        "ratio": round(ratio, 3),
        "ratio_of_minima": round(ratio_of_minima, 3),
    }
    return row if error is None else {**row, "relative_error": float(f"{error:.3g}")}


def write(name: str, rows: list[dict[str, object]]) -> None:
    """The rows as JSON, with what is to be known about the machine."""
    document = {
        "bench": name,
        "ratio": "time over that of the first method of the case, medians of interleaved rounds",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": _hardware(),
        "versions": {"python": platform.python_version()}
        | {p: _version(p) for p in ("torch", "triton", "rhoc")},
        "malloc": {name: os.environ.get(name) for name in MALLOC},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{machine()}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n  written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def machine() -> str:
    """What results are told apart by: processors with AVX-512, or others."""
    capability = torch.backends.cpu.get_cpu_capability()
    return "cpu" if capability == "AVX512" else f"cpu-{capability.lower()}"


def _hardware() -> dict[str, object]:
    return {
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "cores": os.cpu_count(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
