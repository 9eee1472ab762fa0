"""Commands that compare formats: rank, search, plan and crossover."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .figures import FigureFile, check_figure, write_figure
from .laws import distance_in_words, saved_fit
from .options import Columns, FitFile, Source
from .output import Column, Json, emit_json, number, say, table, tell, writing

if TYPE_CHECKING:
    from ...runtime.laws.result import Fit
    from ..columns import Columns as Given
    from ..plots.sketch import Sketch
    from ..questions.cost_model import CostModel
    from ..questions.crossover import Crossover
    from ..questions.optimum import Budget
    from ..questions.search import Search

Formats = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SPEC...]", help="Shipped names, files, text forms, or NAME=SPEC of a fit's name."
    ),
]
Cost = Annotated[
    str, typer.Option("--cost", help="flops, speed-ups, bit-operations, traffic, or a YAML file.")
]
Flops = Annotated[float | None, typer.Option("--flops", help="Compute, in FLOPs of 16-bit products.")]
Bytes = Annotated[float | None, typer.Option("--bytes", help="Memory of the stored weights, at most.")]
Tokens = Annotated[float | None, typer.Option("--tokens", help="Training tokens, at most.")]
Served = Annotated[float, typer.Option("--served", help="Tokens to be served, paid for from --flops.")]
Params = Annotated[float | None, typer.Option("--params", help="N, where it is given.")]


class Per(StrEnum):
    """What a format's worth is divided by."""

    bit = "bit"
    byte = "byte"
    flop = "flop"


class Over(StrEnum):
    """The budget that grows until one format overtakes the other."""

    flops = "flops"
    bytes = "bytes"
    tokens = "tokens"
    served = "served"
    params = "params"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    for command in (rank, search, plan, crossover):
        app.command()(command)


def rank(
    formats: Formats = None,
    bits: Annotated[float | None, typer.Option("--bits", help="Stored bits per weight, at most.")] = None,
    per: Annotated[
        Per, typer.Option(help="Stored bit, byte of --model, or training FLOP under --cost.")
    ] = Per.bit,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="package.module:factory, file.py:factory or hf:NAME."),
    ] = None,
    cost: Cost = "speed-ups",
    fit: FitFile = None,
    source: Source = None,
    figure: FigureFile = None,
    as_json: Json = False,
) -> None:
    """Formats in order of worth: rho per stored bit, per byte of a model, or per training FLOP.

    Example: `rhoc rank --bits 4.5`

    Example: `rhoc rank int4 nvfp4 2of4-int4 --per byte --model "rhoc.runtime.llama:llama(width=128)"`

    Example: `rhoc rank --per flop --source quest int8-a8 int4-a4 int2-a2`
    """
    from ..questions.cost_model import cost_model
    from ..questions.rank import UNITS
    from ..questions.rank import rank as ask

    check_figure(figure)
    found = ask(
        formats or [], bits, per.value, cost_model(cost), model=model, fit=saved_fit(fit), source=source
    )
    document = found.to_document()
    write_figure(figure, lambda: _rank_sketches(document))
    if as_json:
        return emit_json(document)
    columns = (
        "rank", "may be", "format", Column(f"worth per {per.value}", 5), "95 % interval", Column("rho", 3),
        Column("bits/weight", 3), Column("bits/input", 3), Column("bytes"), "note",
    )  # fmt: skip
    table(columns, [_ranked(row) for row in document["formats"]])
    tell(f"worth: {UNITS[per.value]}")
    if found.level_with_best:
        tell(f"not told apart from the first: {', '.join(found.level_with_best)}")
    if found.just_above:
        tell(f"a few per cent above {bits:g} bits: {', '.join(found.just_above)}")
    _foot(document)


def search(
    bits: Annotated[float, typer.Option("--bits", help="Stored bits per weight, at most.", min=0.1, max=16)],
    also: Annotated[
        list[str] | None, typer.Argument(metavar="[SPEC...]", help="Formats whose weights compete besides.")
    ] = None,
    inputs: Annotated[
        float | None,
        typer.Option("--inputs", help="Represent inputs too, in at most so many bits.", min=1, max=16),
    ] = None,
    rotate: Annotated[
        bool, typer.Option(help="A Hadamard rotation first: no bits, Gaussian weights.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.yaml", help="Write the winner as a spec.")
    ] = None,
    fit: FitFile = None,
    source: Source = None,
    figure: FigureFile = None,
    as_json: Json = False,
) -> None:
    """The best composite of sparsity, grid, groups and scales under a budget of bits, and the Pareto front.

    Example: `rhoc search --bits 3.2`

    Example: `rhoc search --bits 4.25 --inputs 8.1 --out mine.yaml`

    Example: `rhoc search --bits 3.1 qtip3 higgs3`
    """
    from ..questions.search import search as ask

    check_figure(figure)
    found = ask(bits, input_bits=inputs, also=also or [], rotate=rotate, fit=saved_fit(fit), source=source)
    if out is not None:
        _write_spec(found.spec(out.stem), out)
    document = found.to_document()
    write_figure(figure, lambda: _search_sketches(found))
    if as_json:
        return emit_json(document)
    for title, front in (("weights", document["front"]), ("inputs", document["input_front"])):
        columns = (Column("bits", 4), Column("rho", 4), "95 % interval", Column("GMSE"), title, "note")
        if front:
            table(columns, [_on_front(row) for row in front])
    weights, between = document["spec"]["rules"][0]["weights"], _ends(document["rho_interval"])
    tell(f"best: {weights}, rho {document['rho']:.4f} {between}".rstrip())
    if above := document["just_above"]:
        tell(f"just above, {above['bits']:.4f} bits: {above['representation']}, rho {above['rho']:.4f}")
    tell(f"{document['candidates']:,} candidates, {document['measured']:,} of them measured")
    if document["rho_note"]:
        tell(f"rho: {document['rho_note']}")
    _foot(document)


def plan(
    formats: Formats = None,
    flops: Flops = None,
    nbytes: Bytes = None,
    tokens: Tokens = None,
    served: Served = 0.0,
    params: Params = None,
    columns: Columns = None,
    cost: Cost = "speed-ups",
    fit: FitFile = None,
    source: Source = None,
    figure: FigureFile = None,
    as_json: Json = False,
) -> None:
    """The best size, tokens and format under a budget of compute, memory and tokens served.

    Example: `rhoc plan --flops 1e20`

    Example: `rhoc plan --flops 1e20 --bytes 1e9 --served 1e11 --cost traffic int4 int2 dense`

    Example: `rhoc plan --flops 1e18 --fit fit.json`

    Example: `rhoc plan w4 dense --flops 1e18 --fit qat.json --column group_size=64`
    """
    from ..columns import read_columns
    from ..questions.cost_model import cost_model
    from ..questions.optimum import Budget
    from ..questions.plan import plan as ask

    check_figure(figure)
    budget, saved = Budget(flops, nbytes, tokens, served, params), saved_fit(fit)
    asked, model, given = formats or [], cost_model(cost), read_columns(columns or [])
    document = ask(asked, budget, model, fit=saved, source=source, columns=given).to_document()
    write_figure(figure, lambda: _plan_sketches(asked, budget, model, saved, source, given))
    if as_json:
        return emit_json(document)
    headings = (
        "format", Column("loss", 4), "95 % interval", Column("behind", 4), Column("N", 0),
        "95 % interval of N", Column("D", 0), Column("bytes", 0), Column("time", 2), "limited by", "data",
    )  # fmt: skip
    table(headings, [_planned(row) for row in document["formats"]])
    tell(f"time: of training, per parameter and token, of that of dense numbers ({document['cost']['name']})")
    _foot(document)


def crossover(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="A format.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Another.")],
    over: Annotated[Over, typer.Option(help="The budget that grows.")] = Over.flops,
    flops: Flops = None,
    nbytes: Bytes = None,
    tokens: Tokens = None,
    served: Served = 0.0,
    params: Params = None,
    columns: Columns = None,
    low: Annotated[
        float | None, typer.Option("--from", help="Where to look from; default: a tenth of the data.")
    ] = None,
    high: Annotated[
        float | None, typer.Option("--to", help="And up to; default: ten times the data.")
    ] = None,
    cost: Cost = "speed-ups",
    fit: FitFile = None,
    source: Source = None,
    figure: FigureFile = None,
    as_json: Json = False,
) -> None:
    """The budget at which one format overtakes another, or that it never does near the data.

    Example: `rhoc crossover int4-a4 dense --params 1e8`

    Example: `rhoc crossover int4-a4 int8-a8 --over bytes --flops 1e20`
    """
    from ..columns import read_columns
    from ..questions.cost_model import cost_model
    from ..questions.crossover import crossover as ask
    from ..questions.optimum import Budget

    check_figure(figure)
    budget, saved = Budget(flops, nbytes, tokens, served, params), saved_fit(fit)
    model, given = cost_model(cost), read_columns(columns or [])
    found = ask(
        first, second, budget, model,
        over=over.value, ends=(low, high), fit=saved, source=source, columns=given,
    )  # fmt: skip
    document = found.to_document()
    write_figure(figure, lambda: _crossover_sketches((first, second), found, saved, source, given))
    if as_json:
        return emit_json(document)
    tell(found.message)
    if found.interval is not None:
        tell(f"95 % interval of the crossover: {_ends(list(found.interval))}")
    if found.share is not None:
        tell(f"{found.share:.1%} of the draws cross there")
    if found.rows:
        headings = (
            "at the crossover", Column("N", 0), Column("D", 0), Column("D/N", 2), Column("bytes", 0), "loss",
            "data",
        )  # fmt: skip
        table(headings, [_crossed(row) for row in document["at_crossover"]])
    _foot(document)


def _rank_sketches(document: dict[str, Any]) -> list[Sketch]:
    from ..plots.answer_sketches import rank_sketch

    return [rank_sketch(document)]


def _search_sketches(found: Search) -> list[Sketch]:
    from ..plots.answer_sketches import search_sketch

    return [search_sketch(found)]


def _plan_sketches(
    formats: list[str],
    budget: Budget,
    cost: CostModel,
    fit: Fit | None,
    source: str | None,
    columns: Given,
) -> list[Sketch]:
    """Raises RequestError for a plan that no compute limits."""
    from ...runtime.errors import RequestError
    from ..plots.answer_sketches import frontier_sketch
    from ..plots.frontier import frontier, thinned
    from ..questions.plan import cases_of

    if budget.flops is None:
        raise RequestError("the picture of a plan has compute along its axis", advice="give --flops")
    cases, _ = cases_of(formats, cost, fit and thinned(fit), source, columns)
    return [frontier_sketch(frontier(cases, budget, float(budget.flops)))]


def _crossover_sketches(
    names: tuple[str, str], found: Crossover, fit: Fit | None, source: str | None, columns: Given
) -> list[Sketch]:
    from ..plots.answer_sketches import crossover_sketch
    from ..plots.frontier import thinned
    from ..questions.plan import cases_of

    cases, _ = cases_of(names, found.cost, fit and thinned(fit), source, columns)
    return [crossover_sketch(found, cases)]


def _write_spec(document: dict[str, Any], out: Path) -> None:
    """Raises RequestError for a file that exists, or whose name is no name of a spec."""
    import yaml

    from ...runtime.errors import RequestError

    if out.exists():
        raise RequestError(
            "this file exists", where=str(out), advice="choose another name; nothing was overwritten"
        )
    with writing(out):
        out.write_text(yaml.safe_dump(document, sort_keys=False, width=100), encoding="utf-8")
    say(f"wrote {out}; try `rhoc explain {out} --model MODEL`")


def _ranked(row: dict[str, Any]) -> tuple[object, ...]:
    may_be = row["rank_interval"]
    return (
        row["rank"], "" if may_be is None else f"{may_be[0]} to {may_be[1]}", row["format"], row["worth"],
        _ends(row["worth_interval"]), row["rho"], row["bits_per_weight"], row["bits_per_input"],
        row["total_bytes"], "borrowed constants" if row["borrowed"] else "",
    )  # fmt: skip


def _on_front(row: dict[str, Any]) -> tuple[object, ...]:
    note = "borrowed constants" if row["borrowed"] else ""
    return row["bits"], row["rho"], _ends(row["rho_interval"]), row["gmse"], row["representation"], note


def _planned(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        row["format"], row["loss"], _ends(row["loss_interval"]), row["loss_behind_best"], row["params"],
        _ends(row["params_interval"]), row["tokens"], row["bytes"], row["training_time"], row["bound"],
        _data(row),
    )  # fmt: skip


def _crossed(row: dict[str, Any]) -> tuple[object, ...]:
    keys = ("format", "params", "tokens", "tokens_per_param", "bytes", "loss")
    return (*(row[key] for key in keys), _data(row))


def _data(row: dict[str, Any]) -> str:
    """How far the row is from the runs of the fit."""
    return distance_in_words(row["extrapolation"]).removeprefix("an extrapolation: ")


def _ends(ends: list[float] | None) -> str:
    return "" if ends is None else f"{number(float(f'{ends[0]:.4g}'))} to {number(float(f'{ends[1]:.4g}'))}"


def _foot(document: dict[str, Any]) -> None:
    """What every answer says of itself."""
    tell(f"speaks from: {document['source']}")
    tell(document["interval_note"])
    for note in document.get("columns_notes", []):
        tell(note)
    for entry in document.get("unknown", []):
        tell(f"left out: {entry['format']}, {entry['reason']}")
