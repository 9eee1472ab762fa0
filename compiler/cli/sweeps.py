"""Commands about sweeps: plan, run, status, table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..duration import duration
from .figures import FigureFile, check_figure, write_figure
from .output import Column, Json, emit_json, say, table
from .runs import DEFAULT_STORE, Store, checkpoints, existing

if TYPE_CHECKING:
    from ...runtime.errors import RequestError
    from ...runtime.store import RunStore
    from ..packed_table import PackedRow
    from ..sweep import Cell, Plan
    from ..sweep_table import SeedRow

sweep_app = typer.Typer(
    help="Train many sizes and formats; only what is missing is run.", no_args_is_help=True
)

Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes side by side; default: cores.")
]
GridFile = Annotated[
    str, typer.Argument(metavar="GRID", help="A YAML file, or a shipped sweep: demo, trainers.")
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(sweep_app, name="sweep")


@sweep_app.command("plan")
def sweep_plan(
    grid: GridFile, store: Store = DEFAULT_STORE, workers: Workers = None, as_json: Json = False
) -> None:
    """What a sweep would do and cost; nothing is trained and nothing written.

    Example: `rhoc sweep plan demo`
    """
    with _store_if_any(store) as opened:
        plan = planned(grid, opened, workers)
    document = plan.to_document()
    if as_json:
        return emit_json(document)
    _show_cells(plan)
    typer.echo(describe(document))


@sweep_app.command("status")
def sweep_status(grid: GridFile, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """How far a sweep is.

    Example: `rhoc sweep status demo --store rhoc-demo/runs.db`
    """
    from ...runtime.store import RunStore

    with RunStore(existing(store)) as opened:
        plan = planned(grid, opened, timed=False)
    document = plan.to_document()
    if as_json:
        return emit_json(document)
    _show_cells(plan)
    for cell in document["cells"]:
        if cell["error"]:
            typer.echo(f"failed: {cell['run'][:8]}: {cell['error']}")
    typer.echo(describe(document))


@sweep_app.command("run")
def sweep_run(
    grid: GridFile, store: Store = DEFAULT_STORE, workers: Workers = None, as_json: Json = False
) -> None:
    """Train what is missing of a sweep. Safe to interrupt; running it again goes on.

    Example: `rhoc sweep run demo --store runs.db`
    """
    from ...runtime.executors import cores
    from ...runtime.store import RunStore
    from ..grid import load_grid
    from ..sweep import plan_sweep
    from ..sweep_run import run_sweep
    from .progress import SweepProgress

    loaded, folder = load_grid(grid)  # once: the file may be changed while the sweep runs
    with RunStore(store) as opened:
        plan = plan_sweep(loaded, folder, opened, workers=workers or cores())
        say(describe(plan.to_document()))
        with SweepProgress(plan, plan.missing) as progress:
            failures = run_sweep(plan, plan.missing, store, checkpoints(store), progress)
        after = plan_sweep(loaded, folder, opened, workers=plan.workers, timed=False)
    document = {
        **after.to_document(),
        "failures": [{"cell": f.cell.label, "error": f.error} for f in failures],
    }
    if as_json:
        emit_json(document)
    else:
        for failure in failures:
            say(f"failed: {failure.cell.label}: {failure.error}")
        say(describe(document))
    if failures:
        raise typer.Exit(1)


@sweep_app.command("table")
def sweep_table(
    grid: GridFile, store: Store = DEFAULT_STORE, figure: FigureFile = None, as_json: Json = False
) -> None:
    """Mean and standard deviation of the loss over seeds, for each spec, size and number of tokens.

    Of a sweep with `packed: true`: stored bits and what packed models are worth, as they are and trained.

    Example: `rhoc sweep table trainers --store runs.db`
    """
    from ...runtime.store import RunStore
    from ..sweep_table import seed_table

    check_figure(figure)
    with RunStore(existing(store)) as opened:
        plan = planned(grid, opened, timed=False)
    if plan.grid.packed:
        return _packed(plan, figure, as_json)
    if figure is not None:
        raise _no_figure(grid)
    rows = seed_table(plan)
    if as_json:
        return emit_json([row.to_document() for row in rows])
    loss = (Column(f"mean loss{plan.units.loss_after_comma}", 4), Column("std over seeds", 4))
    table(("spec", "size", "settings", "N", "D", *loss, "seeds"), [_seed_row(row) for row in rows])
    if plan.missing:
        typer.echo(describe(plan.to_document()))


def _packed(plan: Plan, figure: Path | None, as_json: bool) -> None:
    """The table of packed models, and its figure."""
    from ..packed_table import packed_table, stored_points

    rows = packed_table(plan)
    if figure is not None:
        from ..plots.stored import stored_sketch

        sketch = stored_sketch(stored_points(rows))
        write_figure(figure, lambda: [] if sketch is None else [sketch])
    if as_json:
        return emit_json([row.to_document() for row in rows])
    measures = list(dict.fromkeys(name for row in rows for name in row.after))
    heads = [Column(f"{name}{when}", 4) for when in (" as it is", "") for name in measures]
    spreads = [Column("std of loss as it is", 4), Column("std of loss", 4)]
    stored = (Column("bits as it is", 3), Column("bits", 3), Column("coded", 3), Column("bytes", 0))
    table(("spec", *stored, *heads, *spreads, "seeds"), [_packed_row(row, measures) for row in rows])
    if plan.missing:
        typer.echo(describe(plan.to_document()))


def _packed_row(row: PackedRow, measures: Sequence[str]) -> tuple[object, ...]:
    name = f"{row.name} (from scratch)" if row.scratch else row.name
    found = [kind.get(measure) for kind in (row.before, row.after) for measure in measures]
    means = [None if seeds is None else seeds.mean for seeds in found]
    losses = [kind.get("loss") for kind in (row.before, row.after)]
    spreads = [None if seeds is None else seeds.deviation for seeds in losses]
    stored = (row.bits_before, row.bits, row.coded_bits, row.size)
    return (name, *stored, *means, *spreads, len(row.after["loss"].values))


def _no_figure(grid: str) -> RequestError:
    from ...runtime.errors import RequestError

    advice = "give the grid `packed: true`; `rhoc report` draws other sweeps"
    return RequestError(
        "its packed models were not measured, so there is no figure", where=grid, advice=advice
    )


def planned(grid: str, store: RunStore | None, workers: int | None = None, *, timed: bool = True) -> Plan:
    """A grid, by file or shipped name, against a store."""
    from ...runtime.executors import cores
    from ..grid import load_grid
    from ..sweep import plan_sweep

    loaded, folder = load_grid(grid)
    return plan_sweep(loaded, folder, store, workers=workers or cores(), timed=timed)


def describe(document: dict[str, Any]) -> str:
    """A plan in one sentence."""
    head = f"{document['sweep']}: {document['done']} of {document['runs']} runs are finished"
    if not document["missing"]:
        return f"{head}; nothing to do"
    states = ", ".join(f"{document[s]} {s}" for s in ("failed", "interrupted", "running") if document[s])
    cost = f"{document['tokens']:,} {document['unit']}, {document['flops']:.2g} FLOPs"
    seconds, workers = document["seconds"], document["workers"]
    side = f"{workers} worker{'s' if workers > 1 else ''}"
    time = "" if seconds is None else f", about {duration(seconds)} on {side}"
    return f"{head}{f', {states}' if states else ''}; {document['missing']} to do ({cost}{time})"


def _show_cells(plan: Plan) -> None:
    ends = (Column(f"loss{plan.units.loss_after_comma}", 4), Column("seconds", 1))
    rows = [(*_cell_row(cell), plan.seconds_each.get(cell.id)) for cell in plan.cells]
    table(("run", "state", "spec", "size", "N", "D", "seed", *ends), rows)


def _cell_row(cell: Cell) -> tuple[object, ...]:
    state = f"{cell.state}, held out" if cell.held_out else cell.state
    name, seed = cell.experiment.spec.name, cell.experiment.settings.seed
    return (cell.id[:8], state, name, cell.size, cell.params, cell.tokens, seed, cell.loss)


def _seed_row(row: SeedRow) -> tuple[object, ...]:
    name = f"{row.spec} (held out)" if row.held_out else row.spec
    settings = ", ".join(f"{key}={value}" for key, value in row.settings.items())
    return (name, row.size, settings, row.params, row.tokens, row.mean, row.deviation, len(row.losses))


@contextmanager
def _store_if_any(store: str) -> Iterator[RunStore | None]:
    """The store, or None where there is no such file yet: looking does not make one."""
    from ...runtime.store import RunStore

    if "://" not in store and not Path(store).exists():
        yield None
    else:
        with RunStore(store) as opened:
            yield opened
