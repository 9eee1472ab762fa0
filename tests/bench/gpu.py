"""The table of kernels on a CUDA device: `python tests/bench/gpu.py [--limit-seconds N] [--only TEXT] ...`.

Each format and operation, on each layer and number of rows, against dense bfloat16 and its own roofline, into
`tests/bench/results/gpu-DEVICE.json` after every row. A later run measures what is missing or was measured by
other code; what failed is measured again by other code, or with --again. Of some units at a time every kernel is
first compiled and checked, in several processes, and then timed, in one. `gpu_bars.py` says what it comes to.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gpu_bars
import torch
from gpu_children import Children
from gpu_results import Results, code_version
from gpu_units import units

RESULTS = Path(__file__).parent / "results"
_BATCH = 2  # units for each process that compiles
_PATIENCE = 240.0  # seconds
_LANES = 14


def main() -> int:
    """Measure what is missing, and say what all of it comes to."""
    parser = argparse.ArgumentParser(description="The table of kernels on a CUDA device.")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--only", default="", help="items whose names match this regular expression")
    parser.add_argument("--again", action="store_true", help="what failed, also by this code")
    parser.add_argument("--lanes", type=int, default=max(1, min(_LANES, (os.cpu_count() or 2) - 2)))
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the table")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on a processor, interpreted")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("it needs a CUDA device, and torch sees none")
    path, hardware = described(options.results, options.tiny)
    results = Results.at(path, code_version(), hardware)
    if options.again:
        results.rows = {item: row for item, row in results.rows.items() if "failure" not in row}
    asked = [
        [item for item in unit.items if re.search(options.only, item)]
        for unit in units(options.tiny).values()
    ]
    command = [sys.executable, str(Path(__file__).with_name("gpu_child.py"))]
    with TemporaryDirectory() as folder:
        until = time.monotonic() + options.limit_seconds
        children = Children([*command, *(["--tiny"] if options.tiny else [])], Path(folder), _PATIENCE, until)
        with suppress(KeyboardInterrupt):
            Bench(results, children, options.lanes).run(results.missing(asked))
    left = sum(len(items) for items in results.missing(asked))
    print(f"\n{left} items are left; the table is {path}\n")
    print(gpu_bars.told(results.rows))
    return 0


def described(folder: Path, tiny: bool) -> tuple[Path, dict[str, object]]:
    """The file of results for this device, and the device."""
    if tiny:
        return folder / "gpu-tiny.json", {"gpu": None}
    name = torch.cuda.get_device_name()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    return folder / f"gpu-{slug}.json", {"gpu": name, "multiprocessors": processors}


@dataclass
class Bench:
    """Some units at a time: compiled and checked in `lanes` processes, and timed in one."""

    results: Results
    children: Children
    lanes: int

    def run(self, todo: Sequence[Sequence[str]]) -> None:
        """Until all is measured, or the time is up."""
        size = _BATCH * self.lanes
        for first in range(0, len(todo), size):
            batch = todo[first : first + size]
            failed: set[str] = set()

            def warmed(message: Mapping[str, Any], failed: set[str] = failed) -> None:
                if "failure" in message.get("row", {}):
                    failed.add(message["item"])
                    self._add(message)

            lanes = [
                [item for unit in batch[lane :: self.lanes] for item in unit] for lane in range(self.lanes)
            ]
            timed = [item for unit in batch for item in unit]
            if not self.children.work(["--warm"], lanes, warmed):
                return
            left = [item for item in timed if item not in failed]
            if not self.children.work([], [left], self._timed):
                return

    def _timed(self, message: Mapping[str, Any]) -> None:
        if "rates" in message:
            self.results.measured_at(message["rates"])
        if "row" in message:
            self._add(message)

    def _add(self, message: Mapping[str, Any]) -> None:
        item, row = message["item"], message["row"]
        self.results.add(item, row)
        if "failure" in row:
            print(f"{item:58} failed: {row['failure'].splitlines()[-1][:100]}", flush=True)
        else:
            share = f" {row['share']:5.0%} of its roofline" if "share" in row else ""
            how = row["kernel"] + ("" if row["captured"] else ", launched one by one")
            print(f"{item:58} {row['us']:10.1f} us {row['times']:6.2f} x{share}  ({how})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
