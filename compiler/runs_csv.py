"""Runs as CSV: `params, tokens, loss, representation`, and any other column a law names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import InvalidDocument, Problem, RequestError
from ..runtime.laws.runs import Runs
from .hints import did_you_mean

NUMBERS = ("params", "tokens", "loss")
REQUIRED = (*NUMBERS, "representation")
_MOST = 20  # problems reported at once


def read_runs(path: str | Path, data: str = "") -> Runs:
    """The runs in a CSV file, for a law; `data` says what they are runs of, by default the name of the file.

    Runs that diverged (a loss of nan or inf) are left out and named in the runs' `left_out`.
    Raises what `read_runs_csv` raises, except for those.
    """
    rows, lines = _read(Path(path), diverged=True)
    name = Path(path).name
    return runs_from_rows(rows, data or name, [f"{name}:{line}" for line in lines])


def read_runs_csv(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a CSV of runs: numbers where a cell is one, text elsewhere.

    Raises RequestError for a file that cannot be read or holds no runs, and InvalidDocument with
    file:line:column for every missing column, every cell that is not a number where one is needed, and counts
    or losses that are not positive and finite.
    """
    return _read(Path(path))[0]


def write_runs_csv(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of runs; columns are all those that occur, the required ones first.

    Raises RequestError when there are no rows, or when the file cannot be written.
    """
    listed = list(rows)
    if not listed:
        raise RequestError("there are no runs to write", where=str(path), advice="nothing was written")
    columns = list(dict.fromkeys([*REQUIRED, *(name for row in listed for name in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_text(row.get(name)) for name in columns] for row in listed])
    try:
        Path(path).write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write: {error.strerror}", where=str(path)) from error


def runs_from_rows(
    rows: Sequence[Mapping[str, Any]], data: str, addresses: Sequence[str] | None = None
) -> Runs:
    """Rows of a store or a CSV as runs for a law.

    Runs that diverged (a loss of nan or inf) are left out and named in the runs' `left_out`.
    Raises RequestError when a required column is missing, or when every run diverged.
    """
    for number, row in enumerate(rows, 1):
        missing = [name for name in REQUIRED if row.get(name) is None]
        if missing:
            where = addresses[number - 1] if addresses else f"{data}, row {number}"
            raise RequestError(f"a run without {' and '.join(missing)}", where=where, advice="leave it out")
    named = list(addresses or [f"{data}, row {i}" for i in range(1, len(rows) + 1)])
    gone = [i for i, row in enumerate(rows) if _diverged(row["loss"])]
    if gone and len(gone) == len(rows):
        raise RequestError(
            f"no run has a finite loss: all {len(rows)} diverged", where=data, advice="train others first"
        )
    left_out = tuple(f"{named[i]} (loss {rows[i]['loss']})" for i in gone)
    kept = [i for i in range(len(rows)) if i not in set(gone)]
    rows, named = [rows[i] for i in kept], [named[i] for i in kept]
    others = dict.fromkeys(name for row in rows for name in row if name not in REQUIRED)
    return Runs(
        params=np.array([float(row["params"]) for row in rows]),
        tokens=np.array([float(row["tokens"]) for row in rows]),
        loss=np.array([float(row["loss"]) for row in rows]),
        representation=tuple(str(row["representation"]) for row in rows),
        columns={name: tuple(_text(row.get(name)) for row in rows) for name in others},
        addresses=tuple(named),
        data=data,
        left_out=left_out,
    )


def _read(path: Path, *, diverged: bool = False) -> tuple[list[dict[str, Any]], list[int]]:
    """Rows, and the line each starts on. diverged: whether the loss of a run may be nan or inf."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"not UTF-8 text (byte {error.start})", where=str(path), advice="save it as UTF-8 CSV"
        ) from error
    except OSError as error:
        raise RequestError(
            f"cannot read: {error.strerror}", where=str(path), advice="give a CSV of runs"
        ) from error
    table = _cells(path, text)
    if len(table) < 2:
        what = "no runs, only a header" if table else "an empty file"
        raise RequestError(
            what, where=str(path), advice=f"a header ({', '.join(REQUIRED)}) and one line per run"
        )
    _, header = table[0]
    names = [name.strip() for name in header]
    problems = _header_problems(path, table[0][0], names)
    if not problems:
        problems = [p for line, row in table[1:] for p in _row_problems(path, line, row, names, diverged)]
    if problems:
        raise InvalidDocument(problems[:_MOST] + _more(path, problems[_MOST:]))
    rows = [{n: _value(n, cell) for n, cell in zip(names, row, strict=True)} for _, row in table[1:]]
    return rows, [line for line, _ in table[1:]]


def _cells(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Lines that are not blank as (line number, cells)."""
    reader = csv.reader(io.StringIO(text), strict=True)
    found, line = [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                found.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InvalidDocument(
            [Problem(str(path), line, 1, f"not CSV: {error}", "check the quotes")]
        ) from error
    return found


def _header_problems(path: Path, line: int, names: list[str]) -> list[Problem]:
    problems = [
        Problem(str(path), line, 1, f"no column {name!r}", did_you_mean(name, names))
        for name in REQUIRED
        if name not in names
    ]
    for position, name in enumerate(names):
        if name in names[:position]:
            problems.append(
                Problem(str(path), line, _column(names, position), f"column {name!r} twice", "rename one")
            )
    return problems


def _row_problems(path: Path, line: int, row: list[str], names: list[str], diverged: bool) -> list[Problem]:
    if len(row) != len(names):
        return [
            Problem(
                str(path), line, 1, f"{len(row)} cells under a header of {len(names)}", "check the commas"
            )
        ]
    problems = []
    for position, (name, cell) in enumerate(zip(names, row, strict=True)):
        fault = _fault(name, cell.strip())
        if fault and not (diverged and name == "loss" and _diverged(cell)):
            problems.append(
                Problem(str(path), line, _column(row, position), f"{name} is {cell.strip()!r}, {fault}")
            )
    return problems


def _fault(name: str, cell: str) -> str:
    """What is wrong with a cell, or nothing."""
    if name == "representation":
        return "" if cell else "a run needs the name of its representation"
    if name not in NUMBERS:
        return ""
    number = _number(cell)
    if number is None:
        return "not a number"
    return "" if np.isfinite(number) and number > 0 else "not a positive finite number"


def _diverged(loss: object) -> bool:
    """Whether a loss is what a run that diverged ends with: not a number, or infinite."""
    number = _number(str(loss))
    return number is not None and (np.isnan(number) or number == np.inf)


def _column(row: list[str], position: int) -> int:
    """1-based column of a cell in its line, quotes aside."""
    return 1 + sum(len(cell) + 1 for cell in row[:position])


def _more(path: Path, rest: list[Problem]) -> list[Problem]:
    if not rest:
        return []
    return [Problem(str(path), rest[0].line, 1, f"and {len(rest)} more problems from here on")]


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace("_", "x"))  # "1_000" is a number to Python and a typing error here
    except ValueError:
        return None


def _value(name: str, cell: str) -> Any:
    """A cell as a whole number, a number or text."""
    text = cell.strip()
    number = None if name == "representation" else _number(text)
    if number is None or not np.isfinite(number):
        return text
    return (
        int(number)
        if number == int(number) and abs(number) < 2**53 and text.lstrip("+-").isdigit()
        else number
    )


def _text(value: Any) -> str:
    """A value as a cell; floats with every digit."""
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)
