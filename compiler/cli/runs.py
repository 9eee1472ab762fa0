"""Commands about the store of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import Column, Json, emit_json, say, table

runs_app = typer.Typer(help="The store of runs.", no_args_is_help=True)

DEFAULT_STORE = "rhoc.db"
Store = Annotated[
    str, typer.Option("--store", metavar="STORE", help="SQLite file or database URL.", envvar="RHOC_STORE")
]
RunId = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, or its first four characters and more.")
]
CsvFile = Annotated[Path, typer.Argument(metavar="FILE.csv", help="A CSV of runs.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(runs_app, name="runs")


@runs_app.command("ls")
def runs_ls(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Every run in a store.

    Example: `rhoc runs ls --store rhoc-demo/runs.db`
    """
    from ...runtime.store import RunStore

    with RunStore(existing(store)) as opened:
        runs = opened.runs()
        states = ["interrupted" if opened.is_abandoned(run) else run.state for run in runs]
    if as_json:
        return emit_json([run.row() | {"state": state} for run, state in zip(runs, states, strict=True)])
    if not runs:
        return say(f"there are no runs in {store} yet")
    columns = (
        "run",
        "state",
        "spec",
        "N",
        "D",
        Column("loss", 4),
        Column("seconds", 1),
        "error",
    )
    table(
        columns,
        [
            (r.id, state, r.representation, _whole(r.params), _whole(r.tokens), r.loss, r.seconds, r.error)
            for r, state in zip(runs, states, strict=True)
        ],
    )


@runs_app.command("show")
def runs_show(run: RunId, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """One run: its request, result and environment.

    Example: `rhoc runs show 3f2a`
    """
    from dataclasses import asdict
    from datetime import UTC, datetime

    from ...runtime.store import RunStore

    with RunStore(existing(store)) as opened:
        found = opened.get(run)
    document = asdict(found)
    if as_json:
        return emit_json(document)
    for key in (
        "id",
        "state",
        "error",
        "loss",
        "params",
        "tokens",
        "seconds",
        "created",
        "started",
        "finished",
    ):
        value = document[key]
        if key in ("created", "started", "finished") and value is not None:
            value = datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if value is not None:
            typer.echo(f"{key:<10}{shown(value)}")
    for part in ("request", "result", "progress", "environment"):
        if document[part]:
            content = dict(document[part])
            trace = content.pop("traceback", None)
            typer.echo(f"{part}")
            emit_json(without_curves(content))
            if trace:
                typer.echo(f"traceback\n{trace.rstrip()}")


@runs_app.command("export")
def runs_export(file: CsvFile, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Write finished runs as a CSV that `rhoc fit` reads.

    Example: `rhoc runs export runs.csv`
    """
    from ...runtime.store import RunStore
    from ..runs_csv import write_runs_csv

    _is_csv(file)
    with RunStore(existing(store)) as opened:
        rows = opened.rows()
    write_runs_csv(file, rows)
    if as_json:
        return emit_json({"file": str(file), "runs": len(rows)})
    say(f"wrote {len(rows)} runs to {file}")


@runs_app.command("import")
def runs_import(file: CsvFile, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Take the runs of a CSV into a store.

    Example: `rhoc runs import quest_runs.csv --store quest.db`
    """
    from ...runtime.store import RunStore
    from ..runs_csv import read_runs_csv

    _is_csv(file)
    rows = read_runs_csv(file)
    with RunStore(store) as opened:
        new, old = opened.import_rows(rows, file.name)
    if as_json:
        return emit_json({"file": str(file), "imported": new, "known": old})
    say(f"{new} runs imported, {old} were here already")


def existing(store: str) -> str:
    """The store, which must be there. Raises RequestError when there is no such file."""
    from ...runtime.errors import RequestError

    if "://" not in store and not Path(store).exists():
        raise RequestError(
            "there is no such store", where=store, advice="give --store, or make one with `rhoc sweep run`"
        )
    return store


def checkpoints(store: str) -> Path:
    """Where checkpoints of a store's runs lie: beside a SQLite file, else in the working directory."""
    base = Path("rhoc") if "://" in store else Path(store)
    return base.with_suffix(".checkpoints")


def _is_csv(file: Path) -> None:
    from ...runtime.errors import RequestError

    if file.suffix.lower() in (".parquet", ".pq", ".json", ".xlsx"):
        raise RequestError(
            f"runs are kept in CSV files, not {file.suffix}", where=str(file), advice="name it .csv"
        )


def without_curves(document: Any) -> dict[str, Any]:
    """A result without what is too long to read."""
    return {key: value for key, value in document.items() if not key.endswith("_curve")}


def shown(value: object) -> str:
    """A value as tables of a run have it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
