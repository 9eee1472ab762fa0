"""Commands about formats: specs, validate, schema, capacity."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import Column, Json, emit_json, say, table, tell, writing

specs_app = typer.Typer(help="The shipped formats.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A shipped format; `rhoc specs ls` lists them.")]
Specs = Annotated[list[str], typer.Argument(metavar="SPEC...", help="Shipped names or YAML files.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(specs_app, name="specs")
    app.command()(validate)
    app.command()(schema)
    app.command()(capacity)


@specs_app.command("ls")
def specs_ls(as_json: Json = False) -> None:
    """Every shipped format with its stored bits and Gaussian error.

    Example: `rhoc specs ls`
    """
    from ...specs import names
    from ..capacity import summarise
    from ..spec import load_spec

    rows = [summarise(load_spec(name)) for name in names()]
    if as_json:
        return emit_json(rows)
    columns = ("name", Column("bits/weight", 4), "GMSE of weights", "what it is")
    table(columns, [(r["name"], r["bits_per_weight"], r["gmse"], r["summary"]) for r in rows])


@specs_app.command("show")
def specs_show(name: Name, as_json: Json = False) -> None:
    """Print a shipped format.

    Example: `rhoc specs show int4`
    """
    spec, path = _shipped(name)
    if as_json:
        emit_json({**spec.to_document(), "digest": spec.digest})
    else:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)


@specs_app.command("cp")
def specs_cp(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write.")],
    as_json: Json = False,
) -> None:
    """Copy a shipped format to a file, to start your own from.

    Example: `rhoc specs cp int4 mine.yaml`
    """
    from ...runtime.errors import RequestError

    _, path = _shipped(name)
    if file.exists():
        raise RequestError(
            "this file exists", where=str(file), advice="choose another name; nothing was overwritten"
        )
    with writing(file):
        file.write_text(_own(path.read_text(encoding="utf-8"), file.stem), encoding="utf-8")
    if as_json:
        return emit_json({"name": name, "file": str(file)})
    say(f"wrote {file}; try `rhoc validate {file}`")


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Specs, and grids of sweeps.")],
    as_json: Json = False,
) -> None:
    """Every error of spec and grid files, with file:line:column and a next step.

    Example: `rhoc validate mine.yaml`
    """
    from dataclasses import asdict

    problems = [problem for file in files for problem in _problems(file)]
    if as_json:
        emit_json([asdict(problem) for problem in problems])
    else:
        for problem in problems:
            typer.echo(str(problem))
    if problems:
        raise typer.Exit(2)
    say(f"{len(files)} file{'s' if len(files) > 1 else ''}: no errors")


def schema(as_json: Json = False) -> None:
    """The JSON Schema of spec files, for editors; with and without --json.

    Example: `rhoc schema > rhoc.schema.json`
    """
    from ..schema import json_schema

    emit_json(json_schema())


def capacity(specs: Specs, as_json: Json = False) -> None:
    """Gaussian error of formats, and the rho that published fits give them.

    Example: `rhoc capacity int4 2of4-int4`

    Example: `rhoc capacity mine.yaml --json`
    """
    from ..capacity import capacities
    from ..spec import load_spec

    rows = [row for name in specs for row in capacities(load_spec(name))]
    if as_json:
        return emit_json(rows)
    columns = (
        "spec", "tensor", Column("bits/weight", 4), "GMSE", "± s.e.", Column("Gaussian bits", 4),
        Column("per bit", 3), Column("rho", 4), "95 % interval",
    )  # fmt: skip
    table(columns, [_capacity_row(row) for row in rows])
    for row in rows:
        speaks = row["rho_source"] or row["rho_reason"]
        if row["rho"] is not None or row["tensor"] == "weights":
            tell(f"rho of {row['spec']}: {speaks}")


def _capacity_row(row: dict[str, Any]) -> tuple[object, ...]:
    interval = row["rho_interval"]
    shown = f"{interval[0]:.3f} to {interval[1]:.3f}" if isinstance(interval, list | tuple) else ""
    error = row["gmse_standard_error"] or None
    tensor = row["tensor"].replace("input_activations", "inputs")
    keys = ("gaussian_bits", "shannon_efficiency", "rho")
    return (
        row["spec"],
        tensor,
        row["bits_per_weight"],
        row["gmse"],
        error,
        *(row[key] for key in keys),
        shown,
    )


def _shipped(name: str) -> tuple[Any, Path]:
    """A shipped spec and its file. Raises RequestError for any other name."""
    from ... import specs
    from ...runtime.errors import RequestError
    from ..hints import did_you_mean
    from ..spec import load_spec

    if name not in specs.names():
        hint = did_you_mean(name, specs.names(), "`rhoc specs ls` lists them")
        raise RequestError(f"no shipped format is called {name!r}", advice=hint)
    return load_spec(name), specs.path(name)


def _own(text: str, name: str) -> str:
    """The text of a shipped format as a file of the user's: its own name, no address of our schema."""
    lines = [line for line in text.splitlines(keepends=True) if "$schema=" not in line]
    fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name)
    return "".join(f"name: {name}\n" if fits and line.startswith("name:") else line for line in lines)


def _problems(file: Path) -> list[Any]:
    """What is wrong with a file, as a grid when it has runs, else as a spec."""
    from ...runtime.errors import RhocError
    from ..documents import read_document
    from ..grid import is_grid, validate_grid
    from ..spec import validate_file

    try:
        grid = is_grid(read_document(file))
    except RhocError:  # unreadable as either; the spec's reader says why
        grid = False
    return validate_grid(file) if grid else validate_file(file)
