"""Commands about laws: laws, fit and predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .figures import FigureFile, check_figure, write_figure
from .options import Baseline, Columns, FitFile, Source
from .output import Json, emit_json, number, say, table
from .runs import DEFAULT_STORE, Store, existing

if TYPE_CHECKING:
    from ...runtime.laws.published import PublishedFit
    from ...runtime.laws.result import Fit
    from ...runtime.laws.runs import Runs
    from ..plots.sketch import Sketch


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    group = typer.Typer(
        no_args_is_help=True, help="The laws that `rhoc fit --law` knows, and the fits that were published."
    )
    group.command("ls")(laws_ls)
    group.command("show")(laws_show)
    group.command("published")(laws_published)
    app.add_typer(group, name="laws")
    app.command()(fit)
    app.command()(predict)


def laws_ls(as_json: Json = False) -> None:
    """The shipped laws: formula, what rho is, and the columns they read.

    Example: `rhoc laws ls`
    """
    from ...runtime.laws import LAWS

    rows = [
        {
            "name": law.name,
            "formula": law.formula,
            "rho": law.rho,
            "columns": [column.name for column in law.columns],
            "source": law.source,
        }
        for law in LAWS
    ]
    if as_json:
        return emit_json({"laws": rows})
    table(("law", "formula", "columns"), [(r["name"], r["formula"], ", ".join(r["columns"])) for r in rows])


def laws_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped law, or a YAML file.")],
    as_json: Json = False,
) -> None:
    """A law as YAML, to read or to make one's own of: `rhoc fit --law own.yaml`.

    Example: `rhoc laws show gamma`
    """
    from ..law_files import law_text, load_law

    law = load_law(name)
    if as_json:
        return emit_json(law.to_document())
    typer.echo(law_text(law), nl=False)


def laws_published(as_json: Json = False) -> None:
    """The published fits that answer questions by `--source`, with the formats they know by name.

    Example: `rhoc laws published`
    """
    from ..published_fits import published_fits

    fits = published_fits().values()
    if as_json:
        keys = ("name", "law", "gives_loss", "formats", "families", "source")
        return emit_json({"published": [dict(zip(keys, _published(fit), strict=True)) for fit in fits]})
    shown = []
    for name, law, gives_loss, formats, families, source in map(_published, fits):
        shown.append((name, law, "yes" if gives_loss else "no", ", ".join(formats or families), source))
    table(("name", "law", "loss", "formats, or families by error", "source"), shown)


def _published(fit: PublishedFit) -> tuple[str, str, bool, list[str], list[str], str]:
    source = f"{fit.title}, arXiv {fit.arxiv}, {fit.where}"
    return fit.name, fit.law, not fit.missing, list(fit.specs), list(fit.families), source


def fit(
    runs: Annotated[
        Path | None, typer.Argument(metavar="[RUNS.csv]", help="A CSV of runs; default: the store.")
    ] = None,
    law: Annotated[
        str, typer.Option("--law", help="A law of `rhoc laws ls`, a YAML file, or auto: the best forecaster.")
    ] = "decoupled",
    store: Store = DEFAULT_STORE,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FIT.json", help="Save the fit, for --fit of predict, rank, plan and others."
        ),
    ] = None,
    baseline: Baseline = None,
    delta: Annotated[
        float, typer.Option("--delta", help="Where the Huber loss of a log residual turns linear.")
    ] = 1e-3,
    residuals: Annotated[str, typer.Option("--residuals", help="log or linear.")] = "log",
    bootstraps: Annotated[
        int, typer.Option("--bootstraps", help="Bootstrap draws for intervals; 0 for none.")
    ] = 1000,
    resampling: Annotated[
        str, typer.Option("--resampling", help="How draws are made: case, wild or parametric.")
    ] = "case",
    check_published: Annotated[
        bool, typer.Option("--check-published", help="How far published constants are from these runs.")
    ] = False,
    figure: FigureFile = None,
    as_json: Json = False,
) -> None:
    """Fit a law to runs: the global optimum, intervals, what the runs cannot identify, rho of each format.

    Example: `rhoc fit runs.csv --law decoupled --out fit.json`

    Example: `rhoc fit --store rhoc-demo/runs.db`

    Example: `rhoc fit runs.csv --law chinchilla --check-published`

    Example: `rhoc fit runs.csv --law auto`
    """
    from ..fits import fit_runs, save_fit, select_law
    from ..runs_csv import read_runs, runs_from_rows

    check_figure(figure)
    if runs is not None:
        loaded = read_runs(runs)
    else:
        from ...runtime.store import RunStore

        with RunStore(existing(store)) as opened:
            loaded = runs_from_rows(opened.rows(), Path(store).name if "://" not in store else "the store")
    if check_published:
        return _check(loaded, law, figure, as_json=as_json)
    document: dict[str, Any] = {}
    if law == "auto":
        selection = select_law(loaded, delta=delta, bootstraps=bootstraps, residuals=residuals)
        fitted, document["selection"] = selection.fit, selection.to_document()
    else:
        fitted = fit_runs(
            loaded, law, baseline=baseline, delta=delta, bootstraps=bootstraps, residuals=residuals,
            resampling=resampling,
        )  # fmt: skip
    if out is not None:
        save_fit(fitted, out)
        say(f"wrote {out}")
    document = fitted.to_document(draws=False) | document
    write_figure(figure, lambda: _sketches(document))
    if as_json:
        emit_json(document)
    else:
        _show_fit(document)
    if not fitted.outcome.usable:
        raise typer.Exit(1)


def predict(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="A shipped name, a YAML file, or a format of the fit.")
    ],
    params: Annotated[float, typer.Option("--params", help="N, non-embedding parameters.")],
    tokens: Annotated[float, typer.Option("--tokens", help="D, training tokens.")],
    fit: FitFile = None,
    source: Source = None,
    factors: Annotated[
        str | None, typer.Option("--factors", help="Formats of the fit to multiply, by commas.")
    ] = None,
    rule: Annotated[str, typer.Option("--rule", help="How factors compose.")] = "product",
    columns: Columns = None,
    as_json: Json = False,
) -> None:
    """Loss and effective parameters of a format, with intervals and the distance from the data.

    Example: `rhoc predict int4 --params 1e9 --tokens 2e10`

    Example: `rhoc predict int2-a2 --params 3e4 --tokens 1e6 --fit fit.json --factors int2,a2`

    Example: `rhoc predict int2-a2 --params 3e4 --tokens 1e6 --fit fit.json --rule "overlap by family"`

    Example: `rhoc predict w4 --params 1e8 --tokens 1e10 --fit qat.json --column group_size=64`
    """
    from ..columns import read_columns
    from ..query import predict as ask

    given = read_columns(columns or [])
    given.check([spec])
    document = ask(
        spec, params, tokens,
        fit=saved_fit(fit),
        source=source,
        factors=tuple(factors.split(",")) if factors else (), rule=rule,
        columns=given.of(spec),
    )  # fmt: skip
    if as_json:
        return emit_json(document)
    rows: list[tuple[object, ...]] = [
        ("rho", document["rho"], _interval(document["rho_interval"])),
        (
            "effective parameters",
            document["effective_parameters"],
            _interval(document["effective_parameters_interval"]),
        ),
        (
            "loss, nats per token" if fit is None else "loss",
            document["loss"],
            _interval(document["loss_interval"]),
        ),
    ]
    table((document["spec"], "value", "95 % interval"), rows)
    typer.echo(f"speaks from: {document['rho_source']}")
    for key in ("loss_reason", "loss_interval_note"):
        if document.get(key):
            typer.echo(f"{key.split('_')[0]}: {document[key]}")
    typer.echo(distance_in_words(document["extrapolation"]))
    if document.get("composition"):
        rule, error = (document["composition"][key] for key in ("rule", "published_residual"))
        typer.echo(f"composed by the {rule} rule, whose largest published error in rho is {error}")


def _sketches(document: dict[str, Any]) -> list[Sketch]:
    from ..plots.fit_sketches import fit_sketches

    return fit_sketches(document)


def _check_sketches(rows: list[dict[str, Any]]) -> list[Sketch]:
    from ..plots.fit_sketches import checks_sketches

    return checks_sketches(rows)


def _check(runs: Runs, law: str, figure: Path | None, *, as_json: bool) -> None:
    """Published fits of a law against runs."""
    from ..check_published import HEADINGS, check_published, check_table

    rows = check_published(runs, None if law == "auto" else law)
    write_figure(figure, lambda: _check_sketches(rows))
    if as_json:
        return emit_json({"data": runs.data, "published": rows})
    table(HEADINGS, check_table(rows))


def saved_fit(path: Path | None) -> Fit | None:
    """The fit of `--fit`, where one is named."""
    from ..fits import load_fit

    return None if path is None else load_fit(path)


def _show_selection(selection: dict[str, Any]) -> None:
    """Laws in order, and why the first."""
    rows = [
        (r["law"], r["parameters"], r["forecast"], r["bic"], r["aicc"], r["weight"], r["outcome"])
        for r in selection["laws"]
    ]
    table(("law", "parameters", "forecast error", "BIC", "AICc", "weight", "outcome"), rows)
    typer.echo(selection["reason"])


def _show_fit(document: dict[str, Any]) -> None:
    if "selection" in document:
        _show_selection(document["selection"])
    typer.echo(f"{document['law']}: {document['formula']}  ({document['source']})")
    names = document["parameters"]
    table(
        ("parameter", "value", "standard error", "95 % interval"),
        [(n, v, document["standard_error"][n], _interval(document["interval"][n])) for n, v in names.items()],
    )
    if document["rho"]:
        rows = [
            (n, e["value"], e["standard_error"], _interval(e["interval"])) for n, e in document["rho"].items()
        ]
        table(("format", "rho", "standard error", "95 % interval"), rows)
    typer.echo(
        f"{document['n_runs']} runs of {document['data']}; N in {document['unit_of_params']}; "
        f"rms log error {document['rms_log_error']:.3g}; BIC {document['bic']:.1f}"
    )
    typer.echo(f"{document['outcome']}: {document['message']}")


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def distance_in_words(extrapolation: dict[str, Any] | None) -> str:
    """How far a question is from the runs of the fit that answers."""
    if extrapolation is None:
        return "distance from the data: unknown, the range of its runs was not published"
    if extrapolation["inside"]:
        return "inside the range of the runs"
    parts = {"N": extrapolation["log10_params"], "D": extrapolation["log10_tokens"]}
    far = " and ".join(f"{10**v:.3g} times in {k}" for k, v in parts.items() if v)
    return f"an extrapolation: outside the range of the runs by {far}"
