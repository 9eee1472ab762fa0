"""Commands about the whole: demo, report, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit_json, say, table
from .runs import DEFAULT_STORE, Store, Teller, Workers


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("demo")(demo)
    app.command()(report)
    app.command()(doctor)


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where formats, runs and the report go.")] = Path("rhoc-demo"),
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """The main job on this machine, about five minutes: compile, sweep, fit, predict, check, report.

    Example: `rhoc demo`
    """
    from ...runtime.executors import cores
    from ..demo import Voice, run_demo, verdict
    from ..study import prediction_row

    def show(headings: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
        if not as_json:
            table(headings, rows)

    voice = Voice(say=say if as_json else typer.echo, show=show, teller=Teller)
    outcome = run_demo(folder, workers=workers or cores(), voice=voice)
    if as_json:
        from dataclasses import asdict

        return emit_json(
            {
                "report": str(outcome.report),
                "seconds": outcome.seconds,
                "fit": outcome.fit.to_document(draws=False),
                "predictions": [{**asdict(prediction_row(held)), "hit": held.hit} for held in outcome.held_out],
            }
        )
    typer.echo("")
    for held in outcome.held_out:
        typer.echo(verdict(held))
    typer.echo(f"report: {outcome.report} ({outcome.seconds:.0f} s in all); open it in a browser")


def report(
    grid: Annotated[str, typer.Argument(metavar="GRID", help="A sweep's YAML file, or a shipped sweep.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
    store: Store = DEFAULT_STORE,
    law: Annotated[str, typer.Option("--law")] = "decoupled",
) -> None:
    """One self-contained HTML page about a sweep: formats, curves, law, rho, predictions, environment.

    Example: `rhoc report rhoc-demo/demo.yaml --store rhoc-demo/runs.db --out report.html`
    """
    from ...runtime.store import RunStore
    from ..grid import load_grid
    from ..report import write_report
    from ..study import fit_plan, predict_held_out, report_data
    from ..sweep import plan_sweep
    from .runs import existing

    loaded, folder = load_grid(grid)
    with RunStore(existing(store)) as opened:
        plan = plan_sweep(loaded, folder, opened, workers=1, estimate=False)
    notes = [f"{len(plan.missing)} runs of the sweep are not finished and are left out."] if plan.missing else []
    fitted = fit_plan(plan, law) if any(not cell.held_out for cell in plan.done) else None
    held = predict_held_out(plan, fitted) if fitted is not None and fitted.outcome.usable else ()
    commands = (f"rhoc sweep run {grid} --store {store}", f"rhoc report {grid} --store {store} --out {out}")
    write_report(report_data(plan, fitted, held, commands, notes), out)
    say(f"wrote {out}")


def doctor(as_json: Json = False) -> None:
    """Versions, device, what is missing and how to get it.

    Example: `rhoc doctor`
    """
    from ..doctor import examine

    document = examine()
    if as_json:
        emit_json(document)
    else:
        keys = ("rhoc", "python", "platform", "cores", "device", "kernels")
        table(("", ""), [(key, str(document[key])) for key in keys])
        rows = [(c["name"], c["version"] or "missing", c["purpose"], c["advice"]) for c in document["checks"]]
        table(("package", "version", "needed for", "to get it"), rows)
    if not document["ready"]:
        raise typer.Exit(1)
