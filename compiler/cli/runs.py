"""Commands about runs: train, and the store."""

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
    app.command()(train)
    app.add_typer(runs_app, name="runs")


def train(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A shipped name or a YAML file.")],
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="package.module:factory, file.py:factory or hf:NAME."),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="DATA", help="'stdlib', a folder or file of text, or an array of tokens."
        ),
    ] = "stdlib",
    tokens: Annotated[int, typer.Option("--tokens", help="Training tokens, D.")] = 1_000_000,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Windows in a step.")] = 4,
    context: Annotated[int, typer.Option("--context", help="Tokens in a window.")] = 128,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Its peak; default: derived from the width.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights and the order of the data.")] = 0,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Train one run and record it. A run that exists is shown, not trained again; an interrupted one goes on.

    Example: `rhoc train int4 --model "rhoc.runtime.llama:llama(width=64)" --tokens 2000000`
    """
    from ...runtime.errors import WorkError
    from ...runtime.events import ConsoleProgress
    from ...runtime.store import RunStore
    from ...runtime.train import TrainSettings
    from ..experiment import Experiment, carry_out
    from ..model_reference import ModelReference
    from ..spec import load_spec

    settings = TrainSettings(
        tokens=tokens, batch_size=batch_size, context=context, learning_rate=learning_rate, seed=seed
    )
    experiment = Experiment(load_spec(spec), ModelReference.parse(model), data, settings)
    experiment.check()
    with RunStore(store) as opened:
        run = opened.ensure(experiment.request())
    if run.state == "finished":
        say(f"run {run.id} is finished already; here it is")
    else:
        with ConsoleProgress(experiment.spec.name) as progress:
            run, _ = carry_out(experiment, store, run.id, str(checkpoints(store)), listener=progress)
    if run.state != "finished":
        raise WorkError(
            "another process is at work on this run",
            where=f"run {run.id}",
            advice="wait for it; see `rhoc runs ls`",
        )
    document = {"run": run.id, **_without_curves(run.result or {})}
    if as_json:
        return emit_json(document)
    units = {"loss": "loss, nats per token", "params": "N, parameters", "tokens": "D, tokens"}
    keys = ("run", "loss", "params", "tokens", "steps", "seconds", "tokens_per_second", "learning_rate")
    for key in keys:
        typer.echo(f"{units.get(key, key.replace('_', ' ')):<22}{_shown(document.get(key))}")


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
        Column("loss, nats/token", 4),
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
            typer.echo(f"{key:<10}{_shown(value)}")
    for part in ("request", "result", "progress", "environment"):
        if document[part]:
            content = dict(document[part])
            trace = content.pop("traceback", None)
            typer.echo(f"{part}")
            emit_json(_without_curves(content))
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


def _without_curves(document: Any) -> dict[str, Any]:
    return {key: value for key, value in document.items() if not key.endswith("_curve")}


def _shown(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
