"""A sweep whose packed models were measured: quality against stored bits, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from .plots.data import StoredPoint
from .sweep import Cell, Plan
from .sweep_table import alike

_DENSE_BITS = 32  # of a number of a dense model, in float32


@dataclass(frozen=True)
class Seeds:
    """One number of each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Their mean; None of none."""
        return fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1 in the denominator); None for fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None

    def to_document(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"mean": self.mean, "std": self.deviation, "values": list(self.values)}


@dataclass(frozen=True)
class PackedRow:
    """Runs that differ in nothing but their seed.

    bits: stored bits for each represented number, every field counted, in the mean over seeds; coded_bits:
    the same with integers as rANS bytes; size: bytes of the whole packed model; coded_size: with integers
    coded. bits_before is the same of packed models as they are: formats that choose while they train (how
    many values, which zeros) may end with another number; None for runs from scratch.
    before and after: what packed models are worth, by measure (`loss`, and the task's metrics), as they are
    and once they were trained; runs from scratch have no before.
    """

    spec: str
    size_of_model: str
    settings: dict[str, Any]
    scratch: bool
    tokens: int
    bits: float
    coded_bits: float
    size: float
    coded_size: float
    bits_before: float | None
    before: dict[str, Seeds]
    after: dict[str, Seeds]

    @property
    def name(self) -> str:
        """The spec, and the optimiser where it is not that of the others."""
        optimizer = self.settings.get("optimizer")
        return f"{self.spec}, {optimizer['name']}" if optimizer else self.spec

    def to_document(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "spec": self.spec,
            "size": self.size_of_model,
            "settings": self.settings,
            "scratch": self.scratch,
            "tokens": self.tokens,
            "bits": self.bits,
            "coded_bits": self.coded_bits,
            "bytes": self.size,
            "coded_bytes": self.coded_size,
            "bits_before": self.bits_before,
            "before": {name: seeds.to_document() for name, seeds in self.before.items()},
            "after": {name: seeds.to_document() for name, seeds in self.after.items()},
        }


def packed_table(plan: Plan) -> tuple[PackedRow, ...]:
    """One row for each spec and setting of a plan that has finished runs, those with fewer bits first."""
    rows = (
        _row([cell for cell in cells if cell.state == "finished"], settings)
        for cells, settings in alike(plan)
        if any(cell.state == "finished" for cell in cells)
    )
    return tuple(sorted(rows, key=lambda row: (row.bits, row.spec, row.scratch)))


def stored_points(rows: Sequence[PackedRow]) -> tuple[StoredPoint, ...]:
    """The rows as points of a figure: formats as they are, trained in the format, and so from scratch."""
    points = []
    for row in rows:
        trained = "scratch" if row.scratch else "trained"
        for found, bits, how in (
            (row.before, row.bits_before, "as it is"),
            (row.after, row.bits, trained),
        ):
            loss = found.get("loss")
            if bits is not None and loss is not None and loss.mean is not None:
                points.append(StoredPoint(row.name, bits, loss.mean, loss.deviation, how))
    return tuple(points)


def _row(cells: Sequence[Cell], settings: dict[str, Any]) -> PackedRow:
    results = [dict(cell.finished.result or {}) for cell in cells]
    stored = [result["packed"] for result in results]
    started = [result["packed_start"] for result in results if "packed_start" in result]
    first = cells[0]
    return PackedRow(
        spec=first.experiment.spec.name,
        size_of_model=first.size,
        settings={name: value for name, value in settings.items() if name != "scratch"},
        scratch=first.scratch,
        tokens=first.tokens,
        bits=_bits(stored),
        coded_bits=fmean(_DENSE_BITS if s["coded_bits"] is None else s["coded_bits"] for s in stored),
        size=fmean(s["bytes"] for s in stored),
        coded_size=fmean(s["coded_total_bytes"] for s in stored),
        bits_before=_bits(started) if started else None,
        before=_qualities(started),
        after=_qualities(stored),
    )


def _bits(measured: Sequence[Mapping[str, Any]]) -> float:
    return fmean(_DENSE_BITS if each["bits"] is None else each["bits"] for each in measured)


def _qualities(measured: Sequence[Mapping[str, Any]]) -> dict[str, Seeds]:
    names = dict.fromkeys(name for each in measured for name in each["quality"])
    ordered = sorted(names, key=lambda name: name != "loss")
    return {name: Seeds(tuple(each["quality"][name] for each in measured)) for name in ordered}
