"""Commands about one model: explain and compile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Model, SpecArgument, Weights
from .output import Json, emit_json, say
from .parameters import show_parameters

if TYPE_CHECKING:
    from torch import nn

    from ..compile import Compiled


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
    show_parameters(document)


def compile_model(
    spec: SpecArgument,
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Directory for the packed checkpoint.")
    ] = None,
    weights: Weights = None,
    show: Annotated[
        str | None,
        typer.Option(
            "--show", metavar="PASS", help="Print the graphs before and after a pass, e.g. project."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile a model into its packed form and write it.

    Example: `rhoc compile int4 --model model.py:build --out packed/`

    Example: `rhoc compile int4 --model "rhoc.runtime.llama:llama" --show project`
    """
    import time

    from ...runtime.errors import RequestError

    if out is None and show is None:
        raise RequestError(
            "nothing to do", advice="give --out DIR to write the packed model, or --show PASS to see a graph"
        )
    started = time.perf_counter()
    compiled, document = _explained(spec, model, weights)
    listings = [] if show is None else _listings(compiled, show)
    if out is not None:
        compiled.save(out)
    seconds = time.perf_counter() - started
    if as_json:
        return emit_json(
            {**document, "seconds": seconds, "capture": document["captured"], "listings": listings}
        )
    for listing in listings:
        where = listing["part"] or "the model"
        typer.echo(f"# {where} before {listing['pass']}\n{listing['before']}\n")
        typer.echo(f"# {where} after {listing['pass']}\n{listing['graph']}")
    if out is not None:
        show_parameters(document)
        say(f"wrote {out} in {seconds:.1f} s; rhoc.runtime.load.load_packed reads it")


def _explained(spec: str, model: str, weights: Path | None = None) -> tuple[Compiled, dict[str, Any]]:
    """The compiled model and its explanation, with effective parameters by the published law."""
    from ..compile import compile
    from ..example import own_example
    from ..model_reference import ModelReference
    from ..query import effective_parameters
    from ..spec import load_spec

    loaded = load_spec(spec)
    module = ModelReference.parse(model).build()
    if weights is not None:
        load_weights(module, weights)
    compiled = compile(module, loaded, own_example(module))
    document = compiled.explain().to_document()
    return compiled, {**document, **effective_parameters(loaded, document)}


def _listings(compiled: Compiled, wanted: str) -> list[dict[str, str]]:
    """The graphs before and after a pass, where it runs. Raises RequestError for an unknown pass."""
    from ...runtime.errors import RequestError

    found = compiled.shown(wanted)
    if not found:
        raise RequestError(
            f"no graph needed {wanted}", where=f"spec {compiled.spec.name}", advice="see `rhoc explain`"
        )
    return [
        {"part": step.part, "pass": step.name, "before": step.before, "graph": step.listing} for step in found
    ]


def load_weights(module: nn.Module, file: Path) -> None:
    """Put the tensors of a file into a model. Raises RequestError unless names and shapes agree."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ...runtime.errors import RequestError

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise RequestError(
            f"not a file of weights ({error})", where=str(file), advice="save it with safetensors"
        ) from error
    wanted = module.state_dict()
    other = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    faults = (
        ("lacks", [name for name in wanted if name not in tensors]),
        ("has besides", [name for name in tensors if name not in wanted]),
        ("has other shapes of", other),
    )
    told = [
        f"{verb} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
        for verb, names in faults
        if names
    ]
    if told:
        raise RequestError(
            f"the file {'; it '.join(told)}", where=str(file), advice="give the weights of this very model"
        )
    module.load_state_dict(tensors)
