"""Commands about formats: specs, validate, schema, capacity."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import Column, Json, emit_json, say, table, tell, writing

specs_app = typer.Typer(help="The shipped formats.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A shipped format; `rhoc specs ls` lists them.")]
Specs = Annotated[list[str], typer.Argument(metavar="SPEC...", help="Shipped names or YAML files.")]


class Sort(StrEnum):
    """What a list of formats is sorted by."""

    name = "name"
    bits = "bits"
    gmse = "gmse"
    efficiency = "efficiency"
    rho = "rho"


_SORT_KEYS = {
    Sort.name: ("name", False),
    Sort.bits: ("bits_per_weight", False),
    Sort.gmse: ("gmse", False),
    Sort.efficiency: ("shannon_efficiency", True),
    Sort.rho: ("rho", True),
}


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(specs_app, name="specs")
    app.command()(validate)
    app.command()(schema)
    app.command()(capacity)


@specs_app.command("ls")
def specs_ls(
    sort: Annotated[
        Sort, typer.Option(help="What to sort by: best first, names alphabetically.")
    ] = Sort.bits,
    as_json: Json = False,
) -> None:
    """Every shipped format: stored bits, Gaussian error, share of Shannon's limit, predicted rho.

    Published systems follow, a group of their own.

    Example: `rhoc specs ls --sort rho`
    """
    from ...specs import names, systems

    groups = {"formats": _summaries(names(), sort), "systems": _summaries(systems(), sort)}
    if as_json:
        return emit_json([row | {"group": group} for group, rows in groups.items() for row in rows])
    _list(groups["formats"])
    if groups["systems"]:
        typer.echo("\npublished systems, each by the name systems/NAME")
        _list([row | {"name": Path(row["name"]).name} for row in groups["systems"]])


def _list(rows: list[dict[str, Any]]) -> None:
    columns = (
        "name", Column("bits", 3), Column("GMSE"), Column("Gaussian bits", 3), Column("Shannon", 3),
        Column("rho", 3), Column("what it is", prose=True),
    )  # fmt: skip
    keys = ("name", "bits_per_weight", "gmse", "gaussian_bits", "shannon_efficiency", "rho", "summary")
    table(columns, [[_rounded(key, row[key]) for key in keys] for row in rows])


@specs_app.command("plot")
def specs_plot(
    out: Annotated[Path, typer.Option(help="The picture to write: .svg, .png or .pdf.")] = Path("specs.svg"),
    as_json: Json = False,
) -> None:
    """Draw every shipped format by stored bits and Gaussian error, under Shannon's bound.

    Example: `rhoc specs plot --out specs.svg`
    """
    from ...specs import names
    from ..plots.picture import check_picture, rate_picture

    check_picture(out)
    rows = _summaries(names(), Sort.bits)
    with writing(out):
        best = rate_picture(rows, out)
    if as_json:
        return emit_json({"file": str(out), "pareto": best})
    say(f"wrote {out}; nothing shipped beats {', '.join(best)}")


def _summaries(names: list[str], sort: Sort) -> list[dict[str, Any]]:
    """Rows of specs by name. Of several rules the last speaks, the general one: the first match wins."""
    from ..capacity import summarise
    from ..spec import load_spec

    loaded = {name: load_spec(name) for name in names}
    rows = [summarise(spec, spec.rules[-1]) | {"name": name} for name, spec in loaded.items()]
    key, best_is_most = _SORT_KEYS[sort]
    known = [row for row in rows if row[key] is not None]
    ordered = sorted(known, key=lambda row: row[key], reverse=best_is_most)  # equals by name, as they were
    return ordered + [row for row in rows if row[key] is None]


def _rounded(key: str, value: Any) -> Any:
    """Errors to four digits, which is what is known of all of them."""
    return float(f"{value:.4g}") if key == "gmse" and value else value


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


def capacity(
    specs: Specs,
    on: Annotated[
        str | None,
        typer.Option(help="Other numbers: laplace, student-t:5, or FILE.safetensors[:TENSOR]."),
    ] = None,
    precision: Annotated[
        float | None, typer.Option(help="Estimate anew, to this relative standard error.", min=1e-6, max=1.0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Gaussian error of formats, and the rho that published fits give them.

    Example: `rhoc capacity int4 2of4-int4`

    Example: `rhoc capacity "hadamard(128) >> quantize(int3, group=64)" --json`

    Example: `rhoc capacity nf4 --on student-t:5`
    """
    from ..capacity import capacities
    from ..numbers import numbers_from
    from ..spec import load_spec

    chosen = None if on is None else numbers_from(on)
    rows = [row for name in specs for row in capacities(load_spec(name), chosen, precision)]
    if as_json:
        return emit_json(rows)
    columns = (
        "spec", "tensor", Column("bits/weight", 4), "GMSE", "± s.e.", Column("Gaussian bits", 4),
        Column("per bit", 3), Column("rho", 4), "95 % interval",
    )  # fmt: skip
    table(columns, [_capacity_row(row) for row in rows])
    for row in rows:
        method, _, remark = row["gmse_method"].partition("; ")
        if remark:
            tell(f"GMSE of {row['spec']}: {method}; {remark}")
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

    if name not in (*specs.names(), *specs.systems()):
        hint = did_you_mean(name, (*specs.names(), *specs.systems()), "`rhoc specs ls` lists them")
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
