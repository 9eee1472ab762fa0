"""The command that generates text with a packed model, beside the dense one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .models import load_weights
from .options import Model, SpecArgument, Weights
from .output import Column, Json, emit_json, say, table, tell

if TYPE_CHECKING:
    from ..generation import Measured, Text

_MB = 1e6


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(generate)


def generate(
    spec: SpecArgument,
    model: Model,
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", metavar="TEXT", help="What to go on from; several times for several."),
    ],
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens after each prompt.")] = 64,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="A packed model that `rhoc compile --out` wrote."),
    ] = None,
    weights: Weights = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="All prompts at once, not one after another.")
    ] = False,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the most likely token, more draws at random.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Draw among so many of the most likely tokens.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 0,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="CHAIN",
            help="What keys and values are stored in. \\[default: the spec's kv_cache, else dense]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Text from a packed model, with its speed and memory beside those of the dense one.

    Example: `rhoc generate int4-g128 --model "rhoc.runtime.llama:llama(width=128)" --prompt "def "`

    Example: `rhoc generate int4 --model m.py:build --checkpoint packed/ --prompt A --prompt B --batch
    --cache "quantize(int8, token, dynamic)"`
    """
    from ...runtime.generation.sampling import Sampling
    from ..generation import cache_from, forms_of, measured
    from ..model_reference import ModelReference
    from ..spec import load_spec

    sampling = Sampling(temperature, top_k, seed)
    found = forms_of(
        ModelReference.parse(model),
        load_spec(spec),
        checkpoint,
        None if cache is None else cache_from(cache),
        lambda module: None if weights is None else load_weights(module, weights),
    )
    prompts = [found.text.tokens(each) for each in prompt]
    results = [measured(form, prompts, tokens, sampling, batch=batch) for form in found.forms]
    document = _document(prompt, results, found.text)
    if as_json:
        return emit_json(document)
    if found.text.note:
        say(found.text.note)
    for entry in document["texts"]:
        typer.echo(f"{entry['prompt']}{entry['text']}\n")
    _show(document)


def _document(prompts: list[str], results: list[Measured], text: Text) -> dict[str, Any]:
    dense, packed = results
    pairs = list(zip(dense.tokens, packed.tokens, strict=True))
    return {
        "texts": [
            {"prompt": prompt, "text": text.text(new), "tokens": list(new)}
            for prompt, new in zip(prompts, packed.tokens, strict=True)
        ],
        "forms": [
            {key: value for key, value in asdict(result).items() if key != "tokens"} for result in results
        ],
        "tokens": sum(len(new) for _, new in pairs),
        "same_tokens": sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True)),
        "note": text.note,
    }


def _show(document: dict[str, Any]) -> None:
    columns = [Column(f"{what} (MB)", 3) for what in ("weights", "cache", "peak")]
    rows = [
        (
            form["form"],
            form["tokens_per_second"],
            *(form[f"{what}_bytes"] / _MB for what in ("weight", "cache", "peak")),
        )
        for form in document["forms"]
    ]
    dense, packed = rows
    ratios = [ours / theirs if theirs else None for ours, theirs in zip(packed[1:], dense[1:], strict=True)]
    table(("form", Column("tokens/s", 1), *columns), [*rows, ("packed / dense", *ratios)])
    tell(f"{document['same_tokens']:,} of {document['tokens']:,} tokens are those of the dense model.")
