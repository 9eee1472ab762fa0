"""Results of the bench on CUDA: one document for a device, whole at any moment, that later runs go on with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rhoc.runtime.digest import digest

Row = dict[str, Any]
_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("runtime/**/*.py", "specs/*.yaml", "tests/bench/*gpu*.py", "tests/bench/timing.py")
_PACKAGES = ("torch", "triton", "gemlite", "torchao")


def versions() -> dict[str, str | None]:
    """What results depend on beside the code."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def code_version() -> str:
    """Of all that is measured or measures, and of the packages under it."""
    files = sorted(path for pattern in _CODE for path in _ROOT.glob(pattern))
    contents = {str(path.relative_to(_ROOT)): path.read_text() for path in files}
    return digest({"files": contents, "versions": versions()})


@dataclass
class Results:
    """Rows by item. A row has `code`, the version that it was measured with, and `rates`, the place in `rates`
    of what copies and products reached in the same process."""

    path: Path
    code: str
    hardware: Mapping[str, object]
    rows: dict[str, Row] = field(default_factory=dict)
    rates: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def at(cls, path: Path, code: str, hardware: Mapping[str, object]) -> Results:
        """What is there, or a document to begin with."""
        if not path.exists():
            return cls(path, code, hardware)
        known = json.loads(path.read_text())
        return cls(path, code, hardware, known["rows"], known["rates"])

    def measured_at(self, rates: Mapping[str, float]) -> None:
        """Rates that rows from now on were measured beside."""
        self.rates.append(dict(rates))

    def add(self, item: str, row: Row) -> None:
        """Keep a row, and write the document: a file beside it is moved over it."""
        made = {"code": self.code, "date": datetime.now(UTC).date().isoformat(), "rates": len(self.rates) - 1}
        self.rows[item] = row | made
        document = {
            "about": "times: time of the baseline over that of the kernel; share: of its own roofline",
            "hardware": self.hardware,
            "versions": versions(),
            "rates": self.rates,
            "rows": self.rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(beside, self.path)

    def missing(self, units: Iterable[Sequence[str]]) -> list[list[str]]:
        """What is to be measured of units, in the order given: first what was not yet, then what was by
        other code."""
        unknown = [[item for item in unit if item not in self.rows] for unit in units]
        old = [[item for item in unit if self.rows.get(item, {}).get("code", self.code) != self.code]
               for unit in units]  # fmt: skip
        return [items for items in (*unknown, *old) if items]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
