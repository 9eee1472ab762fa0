"""Commands about the whole: demo, report, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...runtime.errors import RequestError
from ..duration import duration
from .output import Column, Json, emit_json, number, say, table, tell
from .runs import DEFAULT_STORE, Store, existing
from .sweeps import GridFile, Workers, planned


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("demo")(demo)
    app.command()(report)
    app.command()(doctor)


def demo(
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Where formats, runs and the report go.")
    ] = Path("rhoc-demo"),
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """The main job on this machine, about five minutes: compile, sweep, fit, predict, check, report.

    Example: `rhoc demo`
    """
    from ...runtime.executors import cores
    from ..demo import Voice, run_demo, verdict
    from ..study import prediction_row
    from .progress import SweepProgress

    def show(columns: tuple[str | tuple[str, int], ...], rows: list[tuple[object, ...]]) -> None:
        if not as_json:
            table([Column(*c) if isinstance(c, tuple) else c for c in columns], rows)
            typer.echo("")

    voice = Voice(say=say if as_json else tell, show=show, progress=SweepProgress)
    outcome = run_demo(folder, workers=workers or cores(), voice=voice)
    if as_json:
        from dataclasses import asdict

        return emit_json(
            {
                "report": str(outcome.report),
                "seconds": outcome.seconds,
                "fit": outcome.fit.to_document(draws=False),
                "predictions": [
                    {**asdict(prediction_row(held)), "hit": held.hit} for held in outcome.held_out
                ],
            }
        )
    typer.echo("")
    for held in outcome.held_out:
        tell(verdict(held))
    typer.echo(f"report: {outcome.report} ({duration(outcome.seconds)} in all); open it in a browser")


def report(
    grid: GridFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="The page to write.")],
    store: Store = DEFAULT_STORE,
    law: Annotated[str, typer.Option("--law", help="A law of `rhoc laws ls`, or a YAML file.")] = "decoupled",
    as_json: Json = False,
) -> None:
    """One self-contained HTML page about a sweep: formats, curves, law, rho, predictions, environment.

    Example: `rhoc report rhoc-demo/demo.yaml --store rhoc-demo/runs.db --out report.html`
    """
    from ...runtime.store import RunStore
    from ..law_files import load_law
    from ..report import write_report
    from ..study import fit_plan, predict_held_out, report_data

    load_law(law)
    with RunStore(existing(store)) as opened:
        plan = planned(grid, opened, timed=False)
    notes = (
        [f"{len(plan.missing)} runs of the sweep are not finished and are left out."] if plan.missing else []
    )
    apt = plan.grid.start is None and any(not cell.held_out for cell in plan.done)  # laws are of whole runs
    fitted = fit_plan(plan, law) if apt else None
    held = predict_held_out(plan, fitted) if fitted is not None and fitted.outcome.usable else ()
    commands = (f"rhoc sweep run {grid} --store {store}", f"rhoc report {grid} --store {store} --out {out}")
    write_report(report_data(plan, fitted, held, commands, notes), out)
    if as_json:
        return emit_json({"report": str(out), "runs": len(plan.done), "missing": len(plan.missing)})
    say(f"wrote {out}")


def doctor(
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure which kernel is the fastest here, and remember it.")
    ] = False,
    spec: Annotated[
        list[str] | None, typer.Option("--spec", metavar="SPEC", help="Tune for these formats; repeat.")
    ] = None,
    copies: Annotated[
        bool, typer.Option("--copies", help="Also measure kernels that keep a second copy of the weights.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Versions, device, what is missing and how to get it; with --tune, which kernels are fastest here.

    Example: `rhoc doctor`

    Example: `rhoc doctor --tune --spec int4-g128`
    """
    if tune:
        return _tune(spec, copies, as_json)
    if spec or copies:
        raise RequestError("--spec and --copies say what to tune for", advice="add --tune")
    from ..doctor import examine

    document: dict[str, Any] = examine()
    if as_json:
        emit_json(document)
    else:
        for key in ("rhoc", "python", "platform", "cores", "device", "kernels", "products"):
            typer.echo(f"{key:<10}{number(document[key])}")
        typer.echo("")
        rows = [(c["name"], c["version"] or "missing", c["purpose"], c["advice"]) for c in document["checks"]]
        table(("package", "version", "needed for", "to get it"), rows)
    if not document["ready"]:
        raise typer.Exit(1)


def _tune(specs: list[str] | None, copies: bool, as_json: bool) -> None:
    from ...runtime.kernels import tuning
    from ..tune import SPECS, tune

    found = tune(specs or SPECS, copies=copies, listen=say)
    if as_json:
        entries = [
            {
                "spec": each.spec, "operation": each.call.operation, "shape": list(each.call.shape),
                "dtype": each.chosen.dtype, "device": each.chosen.device,
                "fastest": [{"rows": rows, "kernel": kernel} for rows, kernel in each.chosen.fastest],
                "seconds": {str(rows): dict(taken) for rows, taken in each.seconds.items()},
            }
            for each in found
        ]  # fmt: skip
        return emit_json({"file": str(tuning.file()), "tuned": entries})
    shown = []
    for each in found:
        shape = "x".join(map(str, each.call.shape))
        for rows, taken in each.seconds.items():
            best, worst = (pick(taken, key=taken.__getitem__) for pick in (min, max))
            given = (each.spec, each.call.operation, shape, each.chosen.dtype, str(rows))
            shown.append((*given, best, 1e3 * taken[best], worst, taken[worst] / taken[best]))
    heads = ("spec", "operation", "shape", "dtype", "rows", "fastest", "ms", "slowest", "times as long")
    table(heads, shown)
    tell(f"written to {tuning.file()}; RHOC_TUNED=0 leaves it aside")
