"""The page of the systems' table, from what `rhoc sweep table GRID --json` prints for each task.

rhoc sweep run sweeps/digits.yaml --store systems.db      # and text.yaml, diffusion.yaml
rhoc sweep table sweeps/digits.yaml --store systems.db --json > results/systems-digits.json
python systems_table.py results/systems-*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_TITLES = {
    "digits": "digits, nats per image",
    "text": "text, nats per byte",
    "diffusion": "diffusion, squared error",
}
_LIMITS = (1.0, 1.6, 2.8, 3.7, 5.3, 9.5, 32.0)
"""Stored bits that end a group of rows; the best of a group is in bold."""
_KINDS = ("as it is", "trained", "from scratch")


def page(tables: dict[str, list[Row]]) -> str:
    """Markdown: one table, a row for each format and three columns for each task."""
    tasks = list(tables)
    head = (
        "| format | " + " | ".join(f"{_TITLES.get(t, t)}: bits | as it is | trained" for t in tasks) + " |\n"
    )
    line = "|---|" + "---:|---:|---:|" * len(tasks) + "\n"
    return head + line + "".join(_lines(tables, tasks)) + "\n" + "".join(_scratch(tables, tasks))


def _lines(tables: dict[str, list[Row]], tasks: Sequence[str]) -> Iterable[str]:
    found = {task: {name(row): row for row in rows if not row["scratch"]} for task, rows in tables.items()}
    names = {n for rows in found.values() for n in rows}
    bits = {n: min(found[t][n]["bits"] for t in tasks if n in found[t]) for n in names}
    ordered = sorted(names, key=lambda n: (bits[n], n))
    groups = [
        [n for n in ordered if low < bits[n] <= high]
        for low, high in zip((0, *_LIMITS), _LIMITS, strict=False)
    ]
    for group in groups:
        best = {(t, kind): _best(found[t], group, kind) for t in tasks for kind in ("before", "after")}
        for n in group:
            cells = [
                _cells(found[t].get(n), {k: best[t, k] == n for k in ("before", "after")}) for t in tasks
            ]
            yield f"| {n} | " + " | ".join(cells) + " |\n"


def _scratch(tables: dict[str, list[Row]], tasks: Sequence[str]) -> Iterable[str]:
    found = {task: {name(row): row for row in rows if row["scratch"]} for task, rows in tables.items()}
    names = sorted({n for rows in found.values() for n in rows})
    if not names:
        return
    yield "| from scratch | " + " | ".join(tasks) + " |\n|---|" + "---:|" * len(tasks) + "\n"
    for n in names:
        cells = [_value(found[t].get(n, {}).get("after"), False) for t in tasks]
        yield f"| {n} | " + " | ".join(cells) + " |\n"


def name(row: Row) -> str:
    """The spec, and the optimiser where it is not that of the others."""
    optimizer = row["settings"].get("optimizer")
    return f"{row['spec']}, {optimizer['name']}" if optimizer else row["spec"]


def _best(rows: dict[str, Row], names: Sequence[str], kind: str) -> str | None:
    """Whose loss is the least."""
    losses = {
        n: rows[n][kind]["loss"]["mean"] for n in names if n in rows and kind in rows[n] and n != "dense"
    }
    return min(losses, key=lambda n: losses[n], default=None)


def _cells(row: Row | None, bold: dict[str, bool]) -> str:
    if row is None:
        return " |  | "
    trained = _is_trained(row)
    after = _value(row["after"], bold["after"]) if trained else ""
    return f"{row['bits']:.2f} ({row['coded_bits']:.2f}) | {_value(row['before'], bold['before'])} | {after}"


def _is_trained(row: Row) -> bool:
    """Whether it was trained for more than the one step of those whose step takes minutes."""
    return not row.get("one_step", False)


def _value(found: dict[str, Any] | None, bold: bool) -> str:
    if not found:
        return ""
    loss = found["loss"]
    spread = "" if loss["std"] is None else f" ± {_short(loss['std'])}"
    text = f"{_short(loss['mean'])}{spread}"
    return f"**{text}**" if bold else text


def _short(value: float) -> str:
    return f"{value:.3f}".lstrip("0") if value < 10 else f"{value:.1f}"


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
