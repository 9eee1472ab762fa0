"""The command that says which runs to train next."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .figures import FigureFile, check_figure, write_figure
from .options import Baseline
from .output import Column, Json, emit_json, number, table, tell

if TYPE_CHECKING:
    from ..plots.sketch import Sketch


class Gain(StrEnum):
    """What the gain of a run is divided by."""

    run = "run"
    flop = "flop"


def register(app: typer.Typer) -> None:
    """Add this group's command."""
    app.command()(design)


def design(
    runs: Annotated[Path, typer.Argument(metavar="RUNS.csv", help="A CSV of the runs there are.")],
    law: Annotated[str, typer.Option("--law", help="A law of `rhoc laws ls`, or a YAML file.")] = "decoupled",
    fit: Annotated[
        Path | None,
        typer.Option("--fit", metavar="FIT.json", help="A saved fit whose law to take instead of --law."),
    ] = None,
    loss_at: Annotated[
        tuple[float, float] | None,
        typer.Option("--loss-at", metavar="N D", help="Know best the loss of such a run."),
    ] = None,
    of: Annotated[str, typer.Option("--of", help="The representation of that run.")] = "",
    parameter: Annotated[
        str | None, typer.Option("--parameter", help="Know best a parameter of the law.")
    ] = None,
    rho: Annotated[
        str | None, typer.Option("--rho", help="Know best the multiplier of a representation.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", help="How many runs. \\[default: 2]", min=1, max=50)
    ] = None,
    goal: Annotated[
        float | None,
        typer.Option("--error", help="As many runs as bring the standard error to this, 50 at most.", min=0),
    ] = None,
    flops: Annotated[
        float | None, typer.Option("--flops", help="FLOPs (6ND) of a run, at most; default: the largest.")
    ] = None,
    formats: Annotated[
        str | None, typer.Option("--formats", help="Representations to train in, by commas; default: all.")
    ] = None,
    per: Annotated[Gain, typer.Option(help="What counts: the gain, or the gain per FLOP.")] = Gain.run,
    baseline: Baseline = None,
    figure: FigureFile = None,
    as_json: Json = False,
) -> None:
    """Which runs to train next, to know a loss, a parameter or a multiplier better (default: all parameters).

    Example: `rhoc design runs.csv --rho int4`

    Example: `rhoc design runs.csv --rho int4 --error 0.02`

    Example: `rhoc design runs.csv --loss-at 1e9 2e10 --of int4 --flops 1e19 --per flop`
    """
    from ..fits import load_fit
    from ..law_files import load_law
    from ..questions.design import design as ask
    from ..questions.design import target_of
    from ..runs_csv import read_runs

    check_figure(figure)
    chosen = load_fit(fit) if fit else load_law(law, baseline)
    document = ask(
        read_runs(runs),
        chosen,
        target_of(loss_at, parameter, rho, of),
        count=count,
        goal=goal,
        flops=flops,
        formats=tuple(name.strip() for name in formats.split(",")) if formats else (),
        per=per.value,
    )
    write_figure(figure, lambda: _sketches(document))
    if as_json:
        return emit_json(document)
    columns = (
        Column("run", 0),
        Column("N", 0),
        Column("D", 0),
        "representation",
        "FLOPs",
        "expected standard error",
    )
    table(columns, [_row(i, run) for i, run in enumerate(document["runs"], 1)])
    tell(_summary(document))
    tell(document["note"])


def _sketches(document: dict[str, Any]) -> list[Sketch]:
    """Raises RequestError where the target is all parameters, which have no single standard error."""
    from ...runtime.errors import RequestError
    from ..plots.answer_sketches import design_sketch

    sketch = design_sketch(document)
    if sketch is None:
        advice = "name one quantity with --rho, --parameter or --loss-at"
        raise RequestError("all parameters together have no single standard error to draw", advice=advice)
    return [sketch]


def _row(place: int, run: dict[str, Any]) -> tuple[object, ...]:
    error = run["standard_error"]
    return (
        place, run["params"], run["tokens"], run["representation"], f"{run['flops']:.3g}",
        None if error is None else float(f"{error:.3g}"),
    )  # fmt: skip


def _summary(document: dict[str, Any]) -> str:
    before, after, value = (document[k] for k in ("standard_error", "standard_error_after", "value"))
    head = f"{document['target']} under the {document['law']} law"
    if value is not None:
        head += f", now {number(value)}"
    if after is None:
        return f"{head}: the volume of the confidence region shrinks to {document['volume_ratio']:.3g} of it"
    now = "not determined" if before is None else f"{before:.3g}"
    runs = "this run" if len(document["runs"]) == 1 else f"these {len(document['runs'])} runs"
    return f"{head}: standard error {now}, expected {after:.3g} with {runs}"
