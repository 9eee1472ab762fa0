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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from .digest import digest_file
from .errors import RequestError, WorkError
from .folded import CentredNorm
from .packed import Packed, packed_weights
from .packed_document import PackedDocument, PackedWeight, rows_to_plain
from .plain import to_plain
from .representation import Representation
from .slots import Slots
from .tensor_file import read_tensors

TENSORS, DOCUMENT = "model.safetensors", "rhoc.json"


def save_packed(
    directory: str | Path,
    model: nn.Module,
    spec: Mapping[str, Any],
    spec_digest: str,
    around: Mapping[str, Slots] = MappingProxyType({}),
    caches: Mapping[str, Representation] = MappingProxyType({}),
) -> None:
    """Write a packed model. The directory appears complete or not at all; an earlier one is replaced.

    `around` are dense weights by path whose inputs or outputs are projected, `caches` what keys and values
    are represented in, by the path of modules that attend: what the model's own tensors do not tell.

    Tensors go from where they are to the file: saving takes no memory that grows with the model.

    Raises:
        RequestError: the directory holds something else, or the model has state that is no tensor.
        WorkError: the directory cannot be written.
    """
    directory = Path(os.path.abspath(directory))
    if not _replaceable(directory):
        raise RequestError(f"{directory} exists and is no packed model", advice="choose an empty directory")
    tensors, aliases = distinct_tensors(model)
    packed = {name: weight.slots for name, weight in packed_weights(model).items()}
    for name, slots in (packed | dict(around)).items():
        tensors |= {} if slots.codec is None else slots.codec.named(name)
    working = directory.with_name(f".{directory.name}.{os.getpid()}.writing")
    try:
        working.mkdir(parents=True)
        save_file(tensors, working / TENSORS)
        document = PackedDocument(
            spec=dict(spec),
            spec_digest=spec_digest,
            weights=described(model) | {path: _dense(model, path, slots) for path, slots in around.items()},
            aliases=aliases,
            tensors_digest=digest_file(working / TENSORS),
            torch=torch.__version__,
            caches={path: to_plain(representation) for path, representation in caches.items()},
            centred=centred_norms(model),
        )
        text = json.dumps(document.to_document(), indent=1, allow_nan=False)
        (working / DOCUMENT).write_text(text)
        (working / TENSORS).chmod(working.stat().st_mode & 0o666)  # safetensors writes for the owner alone
        for path in (working / TENSORS, working / DOCUMENT, working):
            _keep(path)
        _exchange(working, directory)
        _keep(directory.parent)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise WorkError(f"cannot write {directory}: {said}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _dense(model: nn.Module, path: str, slots: Slots) -> PackedWeight:
    weight = model.state_dict(keep_vars=True)[path]
    kind = str(weight.dtype).removeprefix("torch.")
    around = to_plain(slots.input), tuple(weight.shape), kind, to_plain(slots.output)
    return PackedWeight([], *around, bank=rows_to_plain(slots.rows), codec=slots.codec is not None)


def read_packed(directory: str | Path) -> tuple[PackedDocument, dict[str, Tensor]]:
    """The document and the tensors of a saved model, tied tensors under each of their names.

    Each tensor is read into memory of its own, one after another: loading takes the memory of what is loaded.

    Raises:
        RequestError: there is no packed model, or one of a version not known here.
        WorkError: the files are damaged.
    """
    directory = Path(directory)
    file = directory / DOCUMENT
    with _opened(file) as stream:
        text = stream.read()
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
    with _opened(directory / TENSORS):
        found = digest_file(directory / TENSORS)
    if found != document.tensors_digest:
        raise WorkError(
            f"not the file that {DOCUMENT} was written for: truncated, changed or exchanged",
            where=str(directory / TENSORS),
            advice="copy the directory again, or save the model again",
        )
    try:
        tensors = read_tensors(directory / TENSORS)
    except ValueError as error:
        raise WorkError(str(error), where=str(directory / TENSORS), advice="save the model again") from error
    for name, source in document.aliases.items():
        if source not in tensors:
            message = f"{name} is said to be {source}, which is not there"
            raise RequestError(message, where=str(file), advice="save the model again")
    return document, tensors | {name: tensors[source] for name, source in document.aliases.items()}


def described(model: nn.Module) -> dict[str, PackedWeight]:
    """What the document says of every packed weight of a model, by the first of its paths."""
    return {path: _described(packed) for path, packed in packed_weights(model).items()}


def _described(packed: Packed) -> PackedWeight:
    dtype = str(packed.encoded_dtype).removeprefix("torch.")
    return PackedWeight(
        to_plain(packed.representation),
        to_plain(packed.slots.input),
        tuple(packed.shape),
        dtype,
        to_plain(packed.slots.output),
        {} if packed.arrangement.is_plain else asdict(packed.arrangement),
        rows_to_plain(packed.slots.rows),
        packed.slots.codec is not None,
    )


def centred_norms(model: nn.Module) -> list[str]:
    """The paths of layer norms that subtract no mean, because what they read was centred and rotated."""
    return [path for path, module in model.named_modules() if isinstance(module, CentredNorm)]


def distinct_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a model's state once, contiguous, and the other names of those that have several.

    Tensors are the model's own, copied only where they are not contiguous or share memory with another.
    Raises RequestError for state that is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise RequestError(
                f"{name} is no tensor and cannot be saved", advice="keep it out of the state_dict"
            )
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        storage = tensor.untyped_storage().data_ptr()
        kept = tensor.detach().contiguous()
        tensors[name] = kept.clone() if storage in storages else kept
        storages.add(storage)
    return tensors, aliases


def _replaceable(directory: Path) -> bool:
    """Whether nothing is there, or an empty directory, or a packed model and nothing else."""
    if not directory.exists():
        return True
    return directory.is_dir() and {entry.name for entry in directory.iterdir()} <= {TENSORS, DOCUMENT}


def _keep(path: Path) -> None:
    """Have what was written to a file or directory on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(working: Path, directory: Path) -> None:
    """Move the finished directory to its place; what was there is deleted after."""
    if not directory.exists():
        working.rename(directory)
        return
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    directory.rename(old)
    working.rename(directory)
    shutil.rmtree(old)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """A file of a packed model to read from, with what is said where that cannot be done."""
    try:
        with file.open("rb") as stream:
            yield stream
    except FileNotFoundError as error:
        what = "no packed model here" if file.name == DOCUMENT else f"{file.name} is missing"
        advice = "`rhoc compile SPEC --model M --out DIR` writes one"
        raise RequestError(what, where=str(file.parent), advice=advice) from error
    except OSError as error:
        raise WorkError(f"cannot be read: {error.strerror}", where=str(file)) from error
