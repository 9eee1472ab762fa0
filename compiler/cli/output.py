"""What a command prints: one JSON document or a table on standard output, words on standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def emit_json(document: object) -> None:
    """Print one JSON document. Numbers that JSON lacks (infinite, not a number) become null."""
    print(json.dumps(_plain(document), indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """One line of words on standard error."""
    typer.echo(text, err=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows as a table on standard output, plain when it is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(headings))]
    for heading, right in zip(headings, numeric, strict=True):
        drawn.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(number(cell) for cell in row))
    if not console.is_terminal:
        console = Console(width=max(120, console.width))
    console.print(drawn)


def number(cell: object) -> str:
    """A cell as text: six significant digits for fractions, separators for large counts, nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.6g}" if math.isfinite(cell) else str(cell)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
