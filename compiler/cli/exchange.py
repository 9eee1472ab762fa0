"""Commands about checkpoints that others load: export and import."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Weights
from .output import Json, emit_json, number, say

if TYPE_CHECKING:
    from torch import nn

    from ..spec import Spec


class Layout(StrEnum):
    """What `rhoc export` writes."""

    compressed_tensors = "compressed-tensors"
    hf = "hf"
    sparse = "sparse"
    dense = "dense"


Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A directory that is empty or not there.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("export")(export_checkpoint)
    app.command("import")(import_checkpoint)


def export_checkpoint(
    what: Annotated[
        str,
        typer.Argument(metavar="DIR_OR_SPEC", help="A packed model's directory, or a spec to compile with."),
    ],
    to: Annotated[
        Layout,
        typer.Option(
            "--to",
            help="compressed-tensors (vLLM, transformers), hf (packed, transformers with rhoc), sparse "
            "(values kept and a bitmask), or dense (decoded weights).",
        ),
    ],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The architecture: package.module:factory, file.py:factory or hf:NAME.",
        ),
    ] = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Write a packed model for other programs: weights equal to the bit, or none and the reason.

    Example: `rhoc export int4-g128 --model hf:path/to/model --to compressed-tensors --out served/`

    Example: `rhoc export int4-g128 --model m.py:build --weights trained.safetensors --to dense --out dense/`

    Example: `rhoc export packed/ --model hf:path/to/model --to hf --out loadable/`

    Example: `rhoc export packed/ --to dense --out dense/`
    """
    from ..exchange.compressed_tensors import export_compressed_tensors
    from ..exchange.dense import export_dense
    from ..exchange.source import source_of
    from ..exchange.sparse_checkpoint import export_sparse

    started = time.perf_counter()
    packed, spec, architecture = _packed(what, model, weights, whole=to is Layout.hf)
    beside = _beside(model)
    if to is Layout.hf:
        from ..hf.export import export_pretrained

        notes = export_pretrained(out, packed, spec, beside)
    else:
        write = {
            Layout.compressed_tensors: export_compressed_tensors,
            Layout.sparse: export_sparse,
            Layout.dense: export_dense,
        }[to]
        notes = write(out, source_of(packed, spec, architecture), beside)
    _tell({"out": str(out), "to": to.value, "notes": notes}, packed, out, started, as_json)


def import_checkpoint(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory with config.json and safetensors.")
    ],
    out: Out,
    as_json: Json = False,
) -> None:
    """Read a checkpoint of compressed-tensors, or of sparse weights, as a packed model: equal to the bit.

    Example: `rhoc import served/ --out packed/`
    """
    from ...runtime.checkpoint import save_packed
    from ..exchange.folder import read_config
    from ..exchange.reading import import_compressed_tensors
    from ..exchange.sparse import NAME
    from ..exchange.sparse_checkpoint import import_sparse

    started = time.perf_counter()
    quantization = read_config(directory).get("quantization_config")
    sparse = isinstance(quantization, dict) and quantization.get("quant_method") == NAME
    imported = (import_sparse if sparse else import_compressed_tensors)(directory)
    spec = imported.spec.to_document()
    save_packed(out, imported.model, spec, imported.spec.digest)
    document = {"out": str(out), "notes": list(imported.notes), "spec": spec}
    _tell(document, imported.model, out, started, as_json)


def _packed(
    what: str, model: str | None, weights: Path | None, whole: bool
) -> tuple[nn.Module, Spec, nn.Module | None]:
    """The packed model, its spec, and the architecture where that is another; `whole`: with its code."""
    from ...runtime.checkpoint import DOCUMENT
    from ...runtime.errors import RequestError
    from ...runtime.load import load_packed
    from ..compile import compile
    from ..example import own_example
    from ..exchange.skeleton import saved_skeleton
    from ..model_reference import ModelReference
    from ..spec import load_spec
    from .models import load_weights

    saved = (Path(what) / DOCUMENT).exists()
    if Path(what).is_dir() and not saved:
        raise RequestError("no packed model here", where=what, advice="`rhoc import` reads other checkpoints")
    if saved and weights is not None:
        raise RequestError("a packed model has its own weights", where=what, advice="leave --weights out")
    architecture = None if model is None else ModelReference.parse(model).build()
    if architecture is None and (whole or not saved):
        raise RequestError(
            "the architecture is needed" if saved else f"{what} is a spec, and needs a model",
            advice="give --model",
        )
    if saved:
        skeleton, spec = saved_skeleton(what)
        if whole and architecture is not None:
            return load_packed(what, architecture), spec, None
        return skeleton, spec, architecture
    assert architecture is not None
    if weights is not None:
        load_weights(architecture, weights)
    compiled = compile(architecture, load_spec(what), own_example(architecture))
    return compiled.packed(), compiled.spec, None


def _beside(model: str | None) -> Path | None:
    """Where the tokenizer of an hf: model lies, if that is a directory here."""
    home, _, name = (model or "").partition(":")
    return Path(name) if home == "hf" and Path(name).is_dir() else None


def _tell(document: dict[str, Any], model: nn.Module, out: Path, started: float, as_json: bool) -> None:
    from ...runtime.packed import packed_weights

    document["layers"] = len(packed_weights(model))
    document["bytes"] = sum(file.stat().st_size for file in out.iterdir() if file.suffix == ".safetensors")
    document["seconds"] = time.perf_counter() - started
    if as_json:
        return emit_json(document)
    for note in document["notes"]:
        say(f"note: {note}")
    say(f"wrote {out}: {document['layers']} represented weights, {number(document['bytes'])} bytes in all")
