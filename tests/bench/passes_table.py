"""The page of the bench of passes."""

from __future__ import annotations

from itertools import groupby
from typing import Any

Row = dict[str, Any]

_HEAD = """# Passes on a trained model

A `llama(width=64)` trained on 2 million bytes of Python's standard library, every linear layer but the head
represented, measured on 65,536 held-out bytes. *Error* is that of the logits, squared, over their square; *loss* is
in nats, *more* what it is above the dense model's; *times less error* is against the first row of a section. Eight
batches of 16 x 128 bytes for calibration. One model from one seed: differences of a few percent mean nothing.
"""
_TIMES = """
## Compiling

A model in the shape of GPT-2 (width 768, 50257 tokens), `Conv1D` weights in int4 and inputs in int8: processor
seconds on one thread to compile and to build the train form, the lesser of two. (Other processes stretch the time
on the wall, not this; an idle machine waits no longer.) With an example the captured graphs are run on it and
compared, and `fold_norms` exports the whole model besides.

| layers | million parameters | passes | example | compile | train form | together |
|---:|---:|---|---|---:|---:|---:|
"""


def page(rows: list[Row], times: list[Row]) -> str:
    """Markdown: a table for each section, what did not help named below it, and the times."""
    (dense, *others) = rows
    parts = [_HEAD, f"\nDense: loss {dense['loss']:.4f}.\n"]
    for section, group in groupby(others, key=lambda row: row["section"]):
        parts.append(_section(section, list(group), dense["loss"]))
    parts.append(_TIMES)
    parts += [
        f"| {t['layers']} | {t['parameters'] / 1e6:.1f} | {t['passes']} | {t['example']} | {t['compile']:.2f} | "
        f"{t['trainable']:.2f} | {t['together']:.2f} |\n"
        for t in times
    ]
    return "".join(parts)


def _section(name: str, rows: list[Row], dense: float) -> str:
    first, *others = rows
    lines = [f"\n## {name}\n\n| | bits/weight | loss | more | error | times less error | compile, s | |\n"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---|\n")
    for row in rows:
        less = first["error"] / row["error"] if row["error"] else float("inf")
        lines.append(
            f"| {row['name']} | {row['bits']:.2f} | {row['loss']:.4f} | {row['loss'] - dense:.4f} | "
            f"{row['error']:.4g} | {less:.2f} | {row['seconds']:.1f} | {row['remarks']} |\n"
        )
    useless = [row["name"] for row in others if row["loss"] >= first["loss"]]
    if useless:
        lines.append(f"\nNo lower loss than *{first['name']}*: {'; '.join(useless)}.\n")
    beaten = [a["name"] for a in rows if any(b["bits"] < a["bits"] and b["loss"] < a["loss"] for b in rows)]
    if beaten:
        lines.append(f"\nMore bits and more loss than another row: {'; '.join(beaten)}.\n")
    return "".join(lines)
