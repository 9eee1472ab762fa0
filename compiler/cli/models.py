"""Commands about one model: explain and compile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import Json, emit_json, say, table

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A shipped name or a YAML file.")]
Model = Annotated[str, typer.Option("--model", help="package.module:factory, file.py:factory or hf:NAME, e.g. m:f(width=64).")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(explain)
    app.command("compile")(compile_model)


def explain(spec: SpecArgument, model: Model, as_json: Json = False) -> None:
    """What every parameter of a model becomes under a spec, and why; before spending anything.

    Example: `rhoc explain int4 --model "rhoc.runtime.llama:llama(width=128)"`
    """
    document = _explained(spec, model)[1]
    if as_json:
        return emit_json(document)
    _show(document)


def compile_model(
    spec: SpecArgument,
    model: Model,
    out: Annotated[Path | None, typer.Option("--out", help="Directory for the packed checkpoint.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="A .safetensors file of the model's weights.")] = None,
    show: Annotated[str | None, typer.Option("--show", metavar="PASS", help="Print the graph after this pass.")] = None,
    as_json: Json = False,
) -> None:
    """Compile a model into its packed form and write it.

    Examples: `rhoc compile int4 --model m.py:build --out packed/`,
    `rhoc compile int4 --model "rhoc.runtime.llama:llama" --show project`
    """
    import time

    from ...runtime.errors import RequestError

    if out is None and show is None:
        raise RequestError("nothing to do", advice="give --out DIR to write the packed model, or --show PASS to see a graph")
    started = time.perf_counter()
    compiled, document = _explained(spec, model, weights)
    if show is not None:
        typer.echo(compiled.listing(show))
    if out is not None:
        compiled.save(out)
    document = {**document, "seconds": time.perf_counter() - started, "capture": compiled.capture}
    if as_json:
        emit_json(document)
    elif out is not None:
        _show(document)
        say(f"wrote {out} in {document['seconds']:.1f} s")


def _explained(spec: str, model: str, weights: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """The compiled model and its explanation, with effective parameters by the published law."""
    from ..compile import compile
    from ..model_reference import ModelReference
    from ..query import effective_parameters
    from ..spec import load_spec

    module = ModelReference.parse(model).build()
    if weights is not None:
        _load_weights(module, weights)
    loaded = load_spec(spec)
    compiled = compile(module, loaded)
    document = compiled.explain().to_document()
    return compiled, {**document, **effective_parameters(loaded, document)}


def _load_weights(module: Any, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ...runtime.errors import RequestError

    try:
        module.load_state_dict(load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RequestError(f"these weights do not load ({str(error).splitlines()[0]})", where=str(file)) from error


def _show(document: dict[str, Any]) -> None:
    headings = ("parameter", "op", "shape", "representation", "bits", "GMSE", "kernel", "reason")
    keys = ("path", "op", "shape", "representation", "bits_per_weight", "gmse", "kernel", "reason")
    rows = [tuple("×".join(map(str, p[k])) if k == "shape" else p[k] for k in keys) for p in document["parameters"]]
    table(headings, rows)
    ratio = document["dense_bytes"] / max(document["total_bytes"], 1)
    typer.echo(f"{document['total_bytes']:,} bytes, {ratio:.2f} times fewer than the dense {document['dense_bytes']:,}")
    if document.get("effective_parameters") is not None:
        typer.echo(f"worth {document['effective_parameters']:,.0f} dense parameters ({document['rho_source']})")
