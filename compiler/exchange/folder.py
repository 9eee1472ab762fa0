"""Directories of checkpoints as others lay them out: config.json, and safetensors in one file or shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...runtime.errors import RequestError, WorkError

TENSORS, CONFIG = "model.safetensors", "config.json"
_INDEX = "model.safetensors.index.json"
_BESIDE = (  # files of a model that say nothing of its weights, and go along when it is exported
    "tokenizer", "special_tokens_map", "vocab", "merges", "added_tokens", "chat_template",
    "generation_config", "preprocessor_config", "processor_config", "spiece",
)  # fmt: skip


def write_folder(
    directory: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    beside: Path | None = None,
) -> None:
    """Write config.json (unless empty) and model.safetensors. `beside` and errors as for `staged`."""
    with staged(directory, beside) as working:
        save_file(dict(tensors), working / TENSORS, metadata={"format": "pt"})
        if config:
            (working / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False), encoding="utf-8")


@contextmanager
def staged(directory: str | Path, beside: Path | None = None) -> Iterator[Path]:
    """A directory to write into, which appears in its place when all went well, or not at all.

    `beside` is a directory whose tokenizer files go along.

    Raises:
        RequestError: there is something already.
        WorkError: it cannot be written.
    """
    directory = Path(os.path.abspath(directory))
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RequestError(f"{directory} exists and is not empty", advice="choose an empty directory")
    working = directory.with_name(f".{directory.name}.{os.getpid()}.writing")
    try:
        working.mkdir(parents=True)
        for file in _along(beside):
            shutil.copyfile(file, working / file.name)
        yield working
        for file in working.iterdir():
            file.chmod(working.stat().st_mode & 0o666)  # safetensors writes for the owner alone
            _keep(file)
        if directory.exists():
            directory.rmdir()
        working.rename(directory)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise WorkError(f"cannot write {directory}: {said}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _along(beside: Path | None) -> list[Path]:
    if beside is None or not beside.is_dir():
        return []
    return [file for file in beside.iterdir() if file.is_file() and file.name.startswith(_BESIDE)]


def _keep(file: Path) -> None:
    """Have a file's bytes on the disk."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def read_config(directory: str | Path) -> dict[str, Any]:
    """config.json. Raises RequestError when there is none, WorkError when it is damaged."""
    file = Path(directory) / CONFIG
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"there is no {CONFIG} here"
        raise RequestError(
            message, where=str(directory), advice="give a directory of a checkpoint"
        ) from error
    except OSError as error:
        raise WorkError(f"cannot be read: {error.strerror}", where=str(file)) from error
    except ValueError as error:
        raise WorkError(f"not valid JSON ({error})", where=str(file), advice="copy it again") from error
    if not isinstance(document, dict):
        raise WorkError("not a mapping", where=str(file), advice="copy it again")
    return document


def read_tensors(directory: str | Path) -> dict[str, Tensor]:
    """Every tensor, of all shards. Raises RequestError when a file is missing, WorkError when damaged."""
    found: dict[str, Tensor] = {}
    for name in _files(Path(directory)):
        file = Path(directory) / name
        try:
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                found |= {name: opened.get_tensor(name).clone() for name in names}
        except FileNotFoundError as error:
            raise RequestError(f"{name} is missing", where=str(directory), advice="copy it again") from error
        except (SafetensorError, OSError) as error:
            raise WorkError(
                f"cannot be read ({error})", where=str(file), advice="truncated or changed; copy it again"
            ) from error
    return found


def _files(directory: Path) -> list[str]:
    index = directory / _INDEX
    if (directory / TENSORS).exists() or not index.exists():
        return [TENSORS]
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({Path(str(shard)).name for shard in shards})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WorkError("not the index of shards", where=str(index), advice="copy it again") from error
