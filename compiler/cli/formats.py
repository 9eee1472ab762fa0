"""Commands about formats: specs, validate, schema, capacity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit_json, say, table

specs_app = typer.Typer(help="The shipped formats.", no_args_is_help=True)

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
    headings = ("name", "bits per weight", "GMSE", "Gaussian bits", "summary")
    table(headings, [(r["name"], r["bits_per_weight"], r["gmse"], r["gaussian_bits"], r["summary"]) for r in rows])


@specs_app.command("show")
def specs_show(name: str, as_json: Json = False) -> None:
    """Print a shipped format.

    Example: `rhoc specs show int4`
    """
    from ...specs import path
    from ..spec import load_spec

    spec = load_spec(name)
    if as_json:
        emit_json({**spec.to_document(), "digest": spec.digest})
    else:
        typer.echo(path(name).read_text(), nl=False)


@specs_app.command("cp")
def specs_cp(name: str, file: Path) -> None:
    """Copy a shipped format to a file, to start your own from.

    Example: `rhoc specs cp int4 mine.yaml`
    """
    from ...runtime.errors import RequestError
    from ...specs import path
    from ..spec import load_spec

    load_spec(name)
    if file.exists():
        raise RequestError("this file exists", where=str(file), advice="choose another name; nothing was overwritten")
    file.write_text(path(name).read_text())
    say(f"wrote {file}; try `rhoc validate {file}`")


def validate(files: Annotated[list[Path], typer.Argument(metavar="FILE...")], as_json: Json = False) -> None:
    """Every error of spec files, with file:line:column and a next step.

    Example: `rhoc validate mine.yaml`
    """
    from dataclasses import asdict

    from ..spec import validate_file

    problems = [problem for file in files for problem in validate_file(file)]
    if as_json:
        emit_json([asdict(problem) for problem in problems])
    else:
        for problem in problems:
            typer.echo(str(problem))
    if problems:
        raise typer.Exit(2)
    say(f"{len(files)} file{'s' if len(files) > 1 else ''}: no errors")


def schema() -> None:
    """The JSON Schema of spec files, for editors.

    Example: `rhoc schema > rhoc.schema.json`
    """
    from ..schema import json_schema

    emit_json(json_schema())


def capacity(specs: Specs, as_json: Json = False) -> None:
    """Gaussian error of formats, and the rho that published fits give them.

    Examples: `rhoc capacity int4 2of4-int4`, `rhoc capacity mine.yaml --json`
    """
    from ..capacity import capacities
    from ..spec import load_spec

    rows = [row for name in specs for row in capacities(load_spec(name))]
    if as_json:
        return emit_json(rows)
    headings = ("spec", "tensor", "bits", "GMSE", "± s.e.", "Gaussian bits", "of Shannon", "rho", "interval", "speaks from")
    table(headings, [_capacity_row(row) for row in rows])


def _capacity_row(row: dict[str, object]) -> tuple[object, ...]:
    interval = row["rho_interval"]
    shown = f"{interval[0]:.3f} to {interval[1]:.3f}" if isinstance(interval, list | tuple) else ""
    keys = ("spec", "tensor", "bits_per_weight", "gmse", "gmse_standard_error", "gaussian_bits", "shannon_efficiency", "rho")
    return (*(row[key] for key in keys), shown, row["rho_source"])
