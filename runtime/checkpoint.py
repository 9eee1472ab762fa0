"""Packed models on disk: a directory with model.safetensors (every tensor) and rhoc.json (what they mean).

Tensor names are those of the packed model's `state_dict`: `<weight>.<field>` for a packed weight. The
document holds the whole spec, for each packed weight its representation, shape and dtype, the names of tied
tensors, versions, and the digest of the tensor file, so that a truncated or exchanged file is found out.
Nothing in either file is code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from .digest import digest_bytes
from .errors import RequestError, WorkError
from .packed import Packed, packed_weights
from .packed_document import PackedDocument, PackedWeight
from .plain import to_plain

TENSORS, DOCUMENT = "model.safetensors", "rhoc.json"


def save_packed(directory: str | Path, model: nn.Module, spec: Mapping[str, Any], spec_digest: str) -> None:
    """Write a packed model. The directory appears complete or not at all; an earlier one is replaced.

    Raises:
        RequestError: the directory holds something else, or the model has state that is no tensor.
        WorkError: the directory cannot be written.
    """
    directory = Path(os.path.abspath(directory))
    if not _replaceable(directory):
        raise RequestError(f"{directory} exists and is no packed model", advice="choose an empty directory")
    tensors, aliases = _distinct(model)
    content = safetensors.torch.save(tensors)
    document = PackedDocument(
        spec=dict(spec),
        spec_digest=spec_digest,
        weights={path: _described(packed) for path, packed in packed_weights(model).items()},
        aliases=aliases,
        tensors_digest=digest_bytes(content),
        torch=torch.__version__,
    )
    working = directory.with_name(f".{directory.name}.{os.getpid()}.writing")
    try:
        working.mkdir(parents=True)
        _write(working / TENSORS, content)
        _write(working / DOCUMENT, json.dumps(document.to_document(), indent=1, allow_nan=False).encode())
        _exchange(working, directory)
    except OSError as error:
        raise WorkError(f"cannot write {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def read_packed(directory: str | Path) -> tuple[PackedDocument, dict[str, Tensor]]:
    """The document and the tensors of a saved model, tied tensors under each of their names.

    Raises:
        RequestError: there is no packed model, or one of a version not known here.
        WorkError: the files are damaged.
    """
    directory = Path(directory)
    file = directory / DOCUMENT
    text, content = _read(file), _read(directory / TENSORS)
    try:
        data = json.loads(text)
    except ValueError as error:
        raise WorkError(
            f"not valid JSON ({error})", where=str(file), advice="save the model again"
        ) from error
    try:
        document = PackedDocument.from_document(data)
    except RequestError as error:
        raise error.at(str(file)) from None
    if digest_bytes(content) != document.tensors_digest:
        raise WorkError(
            f"not the file that {DOCUMENT} was written for: truncated, changed or exchanged",
            where=str(directory / TENSORS),
            advice="copy the directory again, or save the model again",
        )
    tensors = safetensors.torch.load(content)
    for name, source in document.aliases.items():
        if source not in tensors:
            message = f"{name} is said to be {source}, which is not there"
            raise RequestError(message, where=str(file), advice="save the model again")
    return document, tensors | {name: tensors[source] for name, source in document.aliases.items()}


def _described(packed: Packed) -> PackedWeight:
    dtype = str(packed.encoded_dtype).removeprefix("torch.")
    return PackedWeight(
        to_plain(packed.representation),
        to_plain(packed.slots.input),
        tuple(packed.shape),
        dtype,
        to_plain(packed.slots.output),
        {} if packed.arrangement.is_plain else asdict(packed.arrangement),
    )


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a model's state once, contiguous, and the other names of those that have several."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise RequestError(
                f"{name} is no tensor and cannot be saved", advice="keep it out of the state_dict"
            )
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def _replaceable(directory: Path) -> bool:
    """Whether nothing is there, or an empty directory, or a packed model and nothing else."""
    if not directory.exists():
        return True
    return directory.is_dir() and {entry.name for entry in directory.iterdir()} <= {TENSORS, DOCUMENT}


def _write(file: Path, content: bytes) -> None:
    """A file whose bytes are on the disk when this returns."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _exchange(working: Path, directory: Path) -> None:
    """Move the finished directory to its place; what was there is deleted after."""
    if not directory.exists():
        working.rename(directory)
        return
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    directory.rename(old)
    working.rename(directory)
    shutil.rmtree(old)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        what = "no packed model here" if file.name == DOCUMENT else f"{file.name} is missing"
        advice = "`rhoc compile SPEC --model M --out DIR` writes one"
        raise RequestError(what, where=str(file.parent), advice=advice) from error
    except OSError as error:
        raise WorkError(f"cannot be read: {error.strerror}", where=str(file)) from error
