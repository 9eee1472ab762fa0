"""The page of the systems' table, from what `rhoc sweep table GRID --json` prints for each task.

rhoc sweep run sweeps/digits.yaml --store systems.db      # and text.yaml, diffusion.yaml
rhoc sweep table sweeps/digits.yaml --store systems.db --json > results/systems-digits.json
python systems_table.py results/systems-*.json
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Row = dict[str, Any]
Rows = dict[str, Row]

_TITLES = {
    "digits": "digits, nats per image",
    "text": "text, nats per byte",
    "diffusion": "diffusion, squared error",
}
_LIMITS = (0.7, 1.45, 2.3, 2.8, 3.7, 4.7, 5.5, 9.5, 32.0)
"""Stored bits that end a range; what has the least loss in a range is in bold."""
_KINDS = {"before": "bits_before", "after": "bits"}
"""Models as they are and trained ones, and where a row has their stored bits."""


def page(tables: dict[str, list[Row]]) -> str:
    """Markdown: a row for each format and three columns for each task, then what was trained from scratch."""
    tasks = list(tables)
    titles = " | ".join(f"{_TITLES.get(task, task)}: bits | as it is | trained" for task in tasks)
    found = {task: {name(row): row for row in rows if not row["scratch"]} for task, rows in tables.items()}
    scratch = {task: {name(row): row for row in rows if row["scratch"]} for task, rows in tables.items()}
    head = f"| format | {titles} |\n|---|" + "---:|---:|---:|" * len(tasks) + "\n"
    again = f"| from scratch | {' | '.join(tasks)} |\n|---|" + "---:|" * len(tasks) + "\n"
    return (
        head
        + "".join(_lines(found))
        + ("\n" + again + "".join(_scratch(scratch)) if any(scratch.values()) else "")
    )


def _lines(found: dict[str, Rows]) -> Iterable[str]:
    names = {n: None for rows in found.values() for n in rows}
    for n in sorted(names, key=lambda n: (_place(found, n), n)):
        cells = (_cells(rows, n) for rows in found.values())
        yield f"| {n} | " + " | ".join(cells) + " |\n"


def _scratch(found: dict[str, Rows]) -> Iterable[str]:
    for n in sorted({n for rows in found.values() for n in rows}, key=lambda n: (n != "dense", n)):
        cells = (_value(rows, n, "after") if n in rows else "" for rows in found.values())
        yield f"| {n} | " + " | ".join(cells) + " |\n"


def _place(found: dict[str, Rows], n: str) -> float:
    """Mean stored bits over tasks, once trained."""
    return fmean(rows[n]["bits"] for rows in found.values() if n in rows)


def name(row: Row) -> str:
    """The spec, and the optimiser where it is not that of the others."""
    optimizer = row["settings"].get("optimizer")
    return f"{row['spec']}, {optimizer['name']}" if optimizer else row["spec"]


def _cells(rows: Rows, n: str) -> str:
    if n not in rows:
        return " |  | "
    row = rows[n]
    bits, start = row["bits"], row["bits_before"]
    before = _value(rows, n, "before")
    if abs(start - bits) > 0.02 * bits:
        before += f" at {start:.2f} bits"  # what training chooses is stored in another number of bits
    return f"{bits:.2f} ({row['coded_bits']:.2f}) | {before} | {_value(rows, n, 'after')}"


def _value(rows: Rows, n: str, kind: str) -> str:
    """A dense loss; of others what it is above the dense one of the same seed, in the mean."""
    losses = _losses(rows[n], kind)
    if not losses:
        return ""
    if n != "dense":
        losses = [loss - dense for loss, dense in zip(losses, _losses(rows["dense"], kind), strict=True)]
    sign = "" if n == "dense" else "+"
    text = f"{_short(fmean(losses), sign)} ± {_short(stdev(losses))}"
    return f"**{text}**" if n == _best(rows, n, kind) else text


def _best(rows: Rows, n: str, kind: str) -> str | None:
    """Whose loss is the least in the range of stored bits of a row; None for dense ones."""
    bits = _KINDS[kind]
    if rows[n]["scratch"] or n == "dense":
        return None
    here = bisect_left(_LIMITS, rows[n][bits])
    among = [m for m, row in rows.items() if m != "dense" and bisect_left(_LIMITS, row[bits]) == here]
    return min((m for m in among if _losses(rows[m], kind)), key=lambda m: fmean(_losses(rows[m], kind)))


def _losses(row: Row, kind: str) -> Sequence[float]:
    """Of every seed; none of those that were trained for one step, whose step takes minutes."""
    if kind == "after" and row.get("one_step", False):
        return []
    found: list[float] = row[kind]["loss"]["values"] if row[kind] else []
    return found


def _short(value: float, sign: str = "") -> str:
    value = round(value, 3) + 0.0  # no negative zero
    return f"{value:{sign}.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{sign}.2f}"


def read(path: Path) -> list[Row]:
    """The rows of a sweep; those that were trained least, for one step, are marked."""
    rows: list[Row] = json.loads(path.read_text())
    least = min(row["tokens"] for row in rows)
    most = max(row["tokens"] for row in rows if not row["scratch"])
    return [row | {"one_step": row["tokens"] == least < most / 10} for row in rows]


if __name__ == "__main__":
    files = [Path(argument) for argument in sys.argv[1:]]
    named = {path.stem.rpartition("-")[2]: read(path) for path in files}
    print(page({task: named[task] for task in (*_TITLES, *named) if task in named}))
