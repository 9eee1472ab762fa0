"""Commands about runs: train, sweep, runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import Json, emit_json, say, table

sweep_app = typer.Typer(help="Train many sizes and formats; only what is missing is run.", no_args_is_help=True)
runs_app = typer.Typer(help="The store of runs.", no_args_is_help=True)

Store = Annotated[str, typer.Option("--store", help="SQLite file or database URL.", envvar="RHOC_STORE")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes side by side; default: cores.")]
GridFile = Annotated[str, typer.Argument(metavar="GRID", help="A YAML file, or a shipped sweep.")]
DEFAULT_STORE = "rhoc.db"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(train)
    app.add_typer(sweep_app, name="sweep")
    app.add_typer(runs_app, name="runs")


def train(
    spec: Annotated[str, typer.Argument(help="A shipped name or a YAML file.")],
    model: Annotated[str, typer.Option("--model", help="package.module:factory, file.py:factory or hf:NAME.")],
    data: Annotated[str, typer.Option("--data", help="'stdlib', a folder or file of text, or a token array.")] = "stdlib",
    tokens: Annotated[int, typer.Option("--tokens", help="Training tokens, D.")] = 1_000_000,
    batch_size: Annotated[int, typer.Option("--batch-size")] = 4,
    context: Annotated[int, typer.Option("--context")] = 128,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Default: derived from the width.")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Train one run and record it. A run that exists is shown, not trained again; an interrupted one goes on.

    Example: `rhoc train int4 --model "rhoc.runtime.llama:llama(width=64)" --tokens 2000000`
    """
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
    with RunStore(store) as opened:
        run = opened.ensure(experiment.request())
    if run.state == "finished":
        say(f"run {run.id} exists already; here it is")
    else:
        with ConsoleProgress(experiment.spec.name) as progress:
            run = carry_out(store, run.id, _checkpoints(store), progress)
    if run.state != "finished":
        from ...runtime.errors import WorkError

        raise WorkError(f"the run is {run.state}: another process is at work on it", where=f"run {run.id}",
                        advice="wait for it, or see `rhoc runs show`")  # fmt: skip
    document = {"run": run.id, **{k: v for k, v in (run.result or {}).items() if not k.endswith("_curve")}}
    if as_json:
        return emit_json(document)
    keys = ("run", "loss", "params", "tokens", "steps", "seconds", "tokens_per_second", "learning_rate")
    table(("", ""), [(key, document.get(key)) for key in keys])


@sweep_app.command("plan")
def sweep_plan(grid: GridFile, store: Store = DEFAULT_STORE, workers: Workers = None, as_json: Json = False) -> None:
    """What a sweep would do and cost; nothing is trained.

    Example: `rhoc sweep plan demo`
    """
    _show_plan(grid, store, workers, as_json, estimate=True)


@sweep_app.command("status")
def sweep_status(grid: GridFile, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """How far a sweep is.

    Example: `rhoc sweep status demo`
    """
    _show_plan(grid, store, None, as_json, estimate=False)


@sweep_app.command("run")
def sweep_run(grid: GridFile, store: Store = DEFAULT_STORE, workers: Workers = None, as_json: Json = False) -> None:
    """Train what is missing of a sweep. Safe to interrupt; running it again goes on.

    Example: `rhoc sweep run demo --store runs.db`
    """
    from ...runtime.executors import cores
    from ...runtime.store import RunStore
    from ..grid import load_grid
    from ..sweep import plan_sweep, run_sweep

    loaded, folder = load_grid(grid)
    with RunStore(store) as opened:
        plan = plan_sweep(loaded, folder, opened, workers=workers or cores())
        say(describe_plan(plan.to_document()))
        failures = run_sweep(plan, store, Path(_checkpoints(store)), tell=Teller(len(plan.missing)))
        after = plan_sweep(loaded, folder, opened, workers=plan.workers, estimate=False)
    document = {**after.to_document(), "failures": [{"cell": c.label, "error": e} for c, e in failures]}
    if as_json:
        emit_json(document)
    else:
        say(describe_plan(document))
        for cell, error in failures:
            say(f"failed: {cell.label}: {error}")
    if failures:
        raise typer.Exit(1)


class Teller:
    """Says how a sweep goes on, one line for each run that ends."""

    def __init__(self, total: int) -> None:
        import time

        self._total, self._started, self._clock = total, time.monotonic(), time.monotonic

    def __call__(self, cell: Any, run: Any, left: int) -> None:
        """A run ended (None: it failed)."""
        done = self._total - left
        seconds = self._clock() - self._started
        outcome = f"loss {run.loss:.4f}" if run is not None and run.loss is not None else "failed"
        rest = f", about {seconds / done * left:.0f} s left" if left else ""
        say(f"  {done}/{self._total}  {outcome}  {cell.label}{rest}")


def describe_plan(document: dict[str, Any]) -> str:
    """A plan in one sentence."""
    head = f"{document['sweep']}: {document['done']} of {document['runs']} runs exist"
    if not document["missing"]:
        return f"{head}; nothing to do"
    cost = f"{document['tokens']:,} tokens, {document['flops']:.2g} FLOPs"
    time = f", about {document['seconds']:.0f} s on {document['workers']} workers" if document["seconds"] else ""
    return f"{head}; {document['missing']} to do ({cost}{time})"


@runs_app.command("ls")
def runs_ls(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Every run in a store.

    Example: `rhoc runs ls --store rhoc-demo/runs.db`
    """
    from ...runtime.store import RunStore

    with RunStore(existing(store)) as opened:
        runs = opened.runs()
    if as_json:
        return emit_json([run.row() for run in runs])
    headings = ("run", "state", "representation", "N", "D", "loss", "seconds", "error")
    rows = [(r.id, r.state, r.representation, _whole(r.params), _whole(r.tokens), r.loss, r.seconds, r.error) for r in runs]
    table(headings, rows)


@runs_app.command("show")
def runs_show(run: str, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """One run: its request, result and environment. The first four characters of its id are enough.

    Example: `rhoc runs show 3f2a`
    """
    from dataclasses import asdict

    from ...runtime.store import RunStore

    with RunStore(existing(store)) as opened:
        found = opened.get(run)
    document = asdict(found)
    if as_json:
        return emit_json(document)
    table(("", ""), [(key, value if not isinstance(value, dict) else "") for key, value in document.items()])
    for part in ("request", "environment"):
        say(part)
        emit_json(document[part])


@runs_app.command("export")
def runs_export(file: Path, store: Store = DEFAULT_STORE) -> None:
    """Write finished runs as a CSV that `rhoc fit` reads.

    Example: `rhoc runs export runs.csv`
    """
    from ...runtime.store import RunStore
    from ..runs_csv import write_runs_csv

    with RunStore(existing(store)) as opened:
        rows = opened.rows()
    write_runs_csv(file, rows)
    say(f"wrote {len(rows)} runs to {file}")


@runs_app.command("import")
def runs_import(file: Path, store: Store = DEFAULT_STORE) -> None:
    """Take the runs of a CSV into a store.

    Example: `rhoc runs import quest_runs.csv --store quest.db`
    """
    from ...runtime.store import RunStore
    from ..runs_csv import read_runs_csv

    rows = read_runs_csv(file)
    with RunStore(store) as opened:
        new, old = opened.import_rows(rows, file.name)
    say(f"{new} runs imported, {old} were here already")


def _show_plan(grid: str, store: str, workers: int | None, as_json: bool, *, estimate: bool) -> None:
    from ...runtime.executors import cores
    from ...runtime.store import RunStore
    from ..grid import load_grid
    from ..sweep import plan_sweep

    loaded, folder = load_grid(grid)
    with RunStore(store) as opened:
        document = plan_sweep(loaded, folder, opened, workers=workers or cores(), estimate=estimate).to_document()
    if as_json:
        return emit_json(document)
    table(("run", "state", "cell"), [(c["run"], c["state"], c["cell"]) for c in document["cells"]])
    typer.echo(describe_plan(document))


def existing(store: str) -> str:
    from ...runtime.errors import RequestError

    if "://" not in store and not Path(store).is_file():
        raise RequestError("there is no such store", where=store, advice="give --store, or make one with `rhoc sweep run`")
    return store


def _checkpoints(store: str) -> str:
    """Where checkpoints of a store's runs lie: beside a SQLite file, else in the working directory."""
    base = Path("rhoc") if "://" in store else Path(store)
    return str(base.with_suffix(".checkpoints"))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
