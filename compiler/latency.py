"""Measured times of layers: milliseconds by candidate and shape, from YAML or CSV.

```yaml
int4:
  4096x4096: 0.021
  4096x11008: 0.058
```

or a CSV with the columns `candidate, shape, milliseconds`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.errors import InvalidDocument, Problem, RequestError
from .documents import read_document
from .plain import describe

COLUMNS = ("candidate", "shape", "milliseconds")
_SHAPE_HINT = "write a shape as 4096x4096"

Times = dict[tuple[str, tuple[int, ...]], float]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one layer by (name of the candidate, shape of the weight)."""

    milliseconds: Mapping[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for (name, shape), time in self.milliseconds.items():
            if not (math.isfinite(time) and time >= 0):
                raise ValueError(f"{name} takes {time} ms on {shape}; give a finite time, 0 or more")

    def of(self, candidate: str, shape: tuple[int, ...]) -> float | None:
        """The time of a candidate on a shape; None where it was not measured."""
        return self.milliseconds.get((candidate, shape))


def read_latency(path: str | Path) -> Latency:
    """The table in a `.csv` file, or else in YAML.

    Raises RequestError for a file that cannot be read, InvalidDocument with every entry that is none.
    """
    source = Path(path)
    rows = _csv_rows(source) if source.suffix == ".csv" else _yaml_rows(source)
    times: Times = {}
    problems = []
    for (line, column), name, shape, time in rows:
        size, value = _shape(shape), _time(time)
        if size is None:
            problems.append(Problem(str(path), line, column, f"{describe(shape)} is no shape", _SHAPE_HINT))
        elif value is None:
            message = f"{describe(time)} is no time in milliseconds"
            problems.append(Problem(str(path), line, column, message, "give a number, 0 or more"))
        elif (name, size) in times:
            message = f"{name} on {shape} is there twice"
            problems.append(Problem(str(path), line, column, message, "remove one"))
        else:
            times[name, size] = value
    if problems:
        raise InvalidDocument(problems)
    return Latency(times)


Row = tuple[tuple[int, int], str, str, object]


def _yaml_rows(path: Path) -> list[Row]:
    document = read_document(path)
    rows: list[Row] = []
    for name, shapes in document.data.items():
        if not isinstance(shapes, dict):
            problem = document.problem(
                (name,), f"expected times by shape, found {describe(shapes)}", _SHAPE_HINT
            )
            raise InvalidDocument([problem])
        for shape, time in shapes.items():
            mark = document.problem((name, shape), "")
            rows.append(((mark.line, mark.column), name, shape, time))
    return rows


def _csv_rows(path: Path) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot be read ({error})", where=str(path), advice="check the path") from error
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        message, hint = f"the column {missing[0]} is missing", f"the first line is {','.join(COLUMNS)}"
        raise InvalidDocument([Problem(str(path), 1, 1, message, hint)])
    return [
        ((reader.line_num, 1), row["candidate"] or "", row["shape"] or "", row["milliseconds"])
        for row in reader
    ]


def _shape(text: str) -> tuple[int, ...] | None:
    sizes = text.strip().split("x")
    return (
        tuple(int(size) for size in sizes)
        if all(size.isascii() and size.isdigit() for size in sizes)
        else None
    )


def _time(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        time = float(value)
    except ValueError:
        return None
    return time if math.isfinite(time) and time >= 0 else None
