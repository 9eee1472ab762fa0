"""What a command prints: one JSON document or a table on standard output, words on standard error."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ...runtime.errors import RequestError

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

_WIDTH = 100  # of tables where standard output is no terminal
_LONG = 40  # a text of more is folded where it does not fit
_PROSE = 24  # columns that folded text keeps, however narrow the terminal


@dataclass(frozen=True)
class Column:
    """A heading with its unit, and the digits after the point of its numbers (None: six significant ones).

    `prose`: the first column to fold, however short its text.
    """

    heading: str
    decimals: int | None = None
    prose: bool = False


def emit_json(document: object) -> None:
    """Print one JSON document. Numbers that JSON lacks (infinite, not a number) become null."""
    typer.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """One line of words on standard error."""
    typer.echo(text, err=True)


def tell(text: str) -> None:
    """A sentence or two on standard output, folded between words."""
    typer.echo(
        textwrap.fill(text, width(), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    )


def table(columns: Sequence[Column | str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a table on standard output.

    Long text is folded, between words; no cell is ever cut off, and square brackets are printed as they are.
    Columns of numbers stand to the right, and empty columns are left out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn, shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False), []
    for place, column in enumerate(Column(c) if isinstance(c, str) else c for c in columns):
        cells = [number(row[place], column.decimals) for row in rows]
        if rows and not any(cells):
            continue
        shown.append(cells)
        numeric = any(isinstance(row[place], int | float) for row in rows)
        longest = max(map(len, (column.heading, *cells)))
        least = min(longest, _PROSE) if column.prose or longest > _LONG else longest
        drawn.add_column(
            Text(column.heading), justify="right" if numeric else "left", overflow="fold",
            min_width=least,
        )  # fmt: skip
    for row_of_cells in zip(*shown, strict=True):
        drawn.add_row(*map(Text, row_of_cells))
    needed = Console(width=10_000).measure(drawn).minimum
    written = io.StringIO()
    Console(file=written, width=max(width(), needed), force_terminal=sys.stdout.isatty()).print(drawn)
    typer.echo("\n".join(line.rstrip() for line in written.getvalue().splitlines()))


def width() -> int:
    """Columns that output may take: those of the terminal, `COLUMNS` if set, else a hundred."""
    return (
        shutil.get_terminal_size((_WIDTH, 24)).columns
        if sys.stdout.isatty() or "COLUMNS" in os.environ
        else _WIDTH
    )


def number(cell: object, decimals: int | None = None) -> str:
    """A cell as text: fractions with six significant digits or fixed decimals, separators in large counts."""
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    if not math.isfinite(cell):
        return str(cell)
    return f"{cell:.6g}" if decimals is None else f"{cell:,.{decimals}f}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around code that writes a file the user named. Raises RequestError when it cannot be written."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"cannot be written: {error.strerror}",
            where=str(path),
            advice="choose a file in a folder that exists",
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
