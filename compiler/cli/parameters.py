"""The table of a model's parameters: what each became, layers that are alike on one line."""

from __future__ import annotations

import math
import re
from typing import Any

import typer

from .output import Column, table, tell

_NUMBER = re.compile(r"\d+")
_SAME = ("op", "shape", "bits_per_weight", "kernel", "reason")  # what layers on one line have in common

Row = dict[str, Any]


def show_parameters(document: dict[str, Any]) -> None:
    """Print the document of `rhoc explain`: a table for each representation, what stays dense last."""
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in document["parameters"]:
        parts.setdefault((row["representation"], row["input_representation"]), []).append(row)
    for weights, inputs in sorted(parts, key=lambda pair: pair == ("dense", "dense")):
        _show_part(weights, inputs, parts[weights, inputs])
        typer.echo("")
    from ..explain import remarks

    lines = remarks(document)
    if lines:
        typer.echo("\n".join(lines) + "\n")
    total, dense = document["total_bytes"], document["dense_bytes"]
    typer.echo(f"{total:,} bytes, {dense / max(total, 1):.2f} times fewer than the dense {dense:,}")
    worth = document["effective_parameters"]
    if worth is None:
        tell(f"effective parameters: not known, {document['effective_parameters_reason']}")
    else:
        source = document["rho_source"]
        tell(f"N = {document['params']:,} parameters, worth {worth:,.0f} dense ones by the {source}")


def joined(rows: list[Row]) -> list[tuple[str, int, Row]]:
    """Alike parameters of numbered layers as one: `layers.0-3.mlp.up_proj.weight`, how many, the first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        alike = [_NUMBER.sub("#", row["path"]), *(row[key] for key in _SAME)]
        groups.setdefault(repr(alike), []).append(row)
    found: list[tuple[str, int, Row]] = []
    for group in groups.values():
        places = zip(*(map(int, _NUMBER.findall(row["path"])) for row in group), strict=True)
        numbers = [sorted(set(place)) for place in places]
        if len(group) == math.prod(map(len, numbers)):
            found.append((_filled(group[0]["path"], map(_ranges, numbers)), len(group), group[0]))
        else:  # not every combination of numbers is there
            found += [(row["path"], 1, row) for row in group]
    return found


def _show_part(weights: str, inputs: str, rows: list[Row]) -> None:
    typer.echo(weights if inputs == "dense" else f"{weights}\n  inputs: {inputs}")
    notes = {row["reason"] for row in rows}
    once = min(notes) if len(notes) == 1 else ""
    error = f"GMSE of weights {rows[0]['gmse']:.6g}" if rows[0]["gmse"] else ""
    if error or once:
        tell("  " + "; ".join(filter(None, (error, once))))
    bits = Column("bits/weight", 4)
    drawn = [_drawn(*line, note="" if once else line[2]["reason"]) for line in joined(rows)]
    table(("parameter", "×", "operation", "shape", bits, "kernel", "note"), drawn)


def _drawn(path: str, count: int, row: Row, *, note: str) -> tuple[object, ...]:
    shape = "×".join(map(str, row["shape"])) or "scalar"
    return (path, count, row["op"], shape, row["bits_per_weight"], row["kernel"], note)


def _filled(path: str, numbers: Any) -> str:
    """A path with its numbers replaced, in order."""
    return _NUMBER.sub(lambda _: next(numbers), path)


def _ranges(numbers: list[int]) -> str:
    """`0-3` for neighbours, `0,2` for others."""
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))
