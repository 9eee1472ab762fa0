"""Text as tokens, split into train and validation, and named by the digest of both.

A corpus is asked for by one string:

- `stdlib`: the source of the running Python's standard library, one token per byte;
- a directory of text files, or one text file: one token per byte, all hidden files left out;
- a token array: `.npy` (one dimension of integers), or `.safetensors` with tensors `train` and `validation`
  or with a single one.

Several files are split by file, by a hash of their names, so that validation text is from files never trained
on; a single file or array is split by position, the last twentieth being validation. Files are joined by one
zero byte. Nothing is written to disk: reading the standard library takes well under a second.

A batch is a pure function of the seed and the step, so a resumed run needs no record of where it was.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .digest import digest, digest_bytes
from .errors import RequestError

Tokens = NDArray[Any]  # one dimension, any integer dtype

_VALIDATION_SHARE = 20  # one file in twenty, or the last twentieth of a single file
_SEPARATOR = b"\0"  # between files: a byte that text does not contain
_SOURCES = "give 'stdlib', a directory of text files, a text file, or a .npy or .safetensors array of tokens"

# Generated tables, tests and installed packages are not the text we mean by the standard library's source.
_STDLIB_SKIPS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
_STDLIB_SKIPPED_PREFIX = "_sysconfigdata"  # how this Python was built, full of one machine's paths


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens to train on and tokens to validate on, integers in [0, vocabulary).

    `notes` say in words what was left out and how the split was made.
    """

    name: str
    vocabulary: int
    train: Tokens
    validation: Tokens
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The address of this corpus: 16 hex digits of its tokens, their split and the vocabulary."""
        parts = [digest_bytes(t.dtype.str.encode(), t.tobytes()) for t in (self.train, self.validation)]
        return digest({"vocabulary": self.vocabulary, "parts": parts})

    def check(self, context: int) -> None:
        """Raises RequestError unless both parts hold at least one window of `context` + 1 tokens."""
        for part, tokens in (("training", self.train), ("validation", self.validation)):
            if len(tokens) < context + 1:
                raise RequestError(
                    f"the corpus has {len(tokens)} {part} tokens; a context of {context} needs {context + 1}",
                    where=f"corpus {self.name}",
                    advice="give more text or a shorter context",
                )

    def batch(self, step: int, *, batch_size: int, context: int, seed: int) -> Tensor:
        """Windows of the training tokens at random places: int64 [batch_size, context + 1].

        The places come from a counter-based generator (Philox) keyed by the seed and counting from the step.
        """
        raw = np.random.Philox(key=seed, counter=[0, step, 0, 0]).random_raw(batch_size)
        starts = raw % np.uint64(len(self.train) - context)
        return _windows(self.train, starts.astype(np.int64), context)

    def evaluation(self, *, tokens: int, context: int) -> Tensor:
        """Fixed windows of the validation tokens: int64 [n, context + 1], each target predicted once.

        At most about `tokens` targets (at least one window), spread evenly over the whole validation part.
        """
        available = (len(self.validation) - 1) // context
        wanted = min(available, max(1, tokens // context))
        places = np.arange(wanted, dtype=np.int64) * available // wanted
        return _windows(self.validation, places * context, context)


def load_corpus(source: str = "stdlib", vocabulary: int | None = None) -> Corpus:
    """The corpus that a string names (see the top of this file).

    `vocabulary` is for token arrays: the number of token kinds, by default what the file says or the largest
    token plus one. Raises RequestError when there is nothing to read, or it is not what it should be.
    """
    path = Path(source).expanduser()
    if source == "stdlib":
        corpus = _from_files("stdlib", Path(sysconfig.get_paths()["stdlib"]), _is_stdlib)
    elif path.is_dir():
        corpus = _from_files(path.resolve().name, path, _is_visible)
    elif path.is_file() and path.suffix in _ARRAY_READERS:
        corpus = _from_arrays(path, vocabulary)
    elif path.is_file():
        corpus = _from_files(path.name, path.parent, lambda name: name == path.name)
    else:
        raise RequestError("there is no such corpus", where=source, advice=_SOURCES)
    if vocabulary is not None and vocabulary != corpus.vocabulary:
        raise RequestError(
            f"text has a vocabulary of 256 bytes, not {vocabulary}",
            where=source,
            advice="leave the vocabulary out, or give an array of tokens",
        )
    return corpus


def _windows(tokens: Tokens, starts: NDArray[np.int64], context: int) -> Tensor:
    places = starts[:, None] + np.arange(context + 1)
    return torch.from_numpy(tokens[places].astype(np.int64))


def _from_files(name: str, root: Path, wanted: Callable[[str], bool]) -> Corpus:
    texts: dict[str, bytes] = {}
    skipped = 0
    for file in _walk(root, wanted):
        text = _read(file)
        if _is_text(text):
            texts[file.relative_to(root).as_posix()] = text
        else:
            skipped += 1
    notes = [f"{skipped} files are not UTF-8 text and were left out"] if skipped else []
    if not any(texts.values()):
        said = f"; {notes[0]}" if notes else ""
        raise RequestError(f"there is no text to train on{said}", where=name, advice=_SOURCES)
    if len(texts) == 1:
        (text,) = texts.values()
        train, validation, note = _by_position(np.frombuffer(text, np.uint8))
    else:
        train, validation, note = _by_file(texts)
    return Corpus(name, 256, train, validation, (note, *notes))


def _by_file(texts: dict[str, bytes]) -> tuple[Tokens, Tokens, str]:
    """Validation is every file whose name hashes into one twentieth, but at least one file and not all."""
    order = sorted(texts, key=lambda name: digest_bytes(name.encode()))
    chosen = [name for name in order if int(digest_bytes(name.encode()), 16) % _VALIDATION_SHARE == 0]
    held = set((chosen or order)[: max(1, min(len(chosen), len(order) - 1))])
    train = _SEPARATOR.join(texts[name] for name in sorted(texts) if name not in held)
    validation = _SEPARATOR.join(texts[name] for name in sorted(held))
    note = f"split by file: {len(texts) - len(held)} to train on, {len(held)} to validate on"
    return np.frombuffer(train, np.uint8), np.frombuffer(validation, np.uint8), note


def _by_position(tokens: Tokens) -> tuple[Tokens, Tokens, str]:
    cut = len(tokens) - len(tokens) // _VALIDATION_SHARE
    return tokens[:cut], tokens[cut:], "split by position: the last twentieth is validation"


def _walk(root: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Files below `root` in sorted order, descending only into folders that are wanted."""
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if wanted(name))
        yield from (Path(folder, name) for name in sorted(files) if wanted(name))


def _is_stdlib(name: str) -> bool:
    if name in _STDLIB_SKIPS or name.startswith((".", _STDLIB_SKIPPED_PREFIX)):
        return False
    return name.endswith(".py") or "." not in name  # folders have no suffix


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return _SEPARATOR not in content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise RequestError(
        f"cannot be read: {error.strerror}",
        where=str(error.filename),
        advice="make it readable, or leave it out",
    ) from error


def _from_arrays(path: Path, vocabulary: int | None) -> Corpus:
    try:
        arrays, stated = _ARRAY_READERS[path.suffix](path)
    except Exception as error:
        raise RequestError(
            f"not a readable array of tokens: {error}",
            where=str(path),
            advice="save integers with numpy.save or safetensors",
        ) from error
    if {"train", "validation"} <= set(arrays):
        train, validation, note = arrays["train"], arrays["validation"], "split as the file has it"
    elif len(arrays) == 1:
        (tokens,) = arrays.values()
        train, validation, note = _by_position(tokens)
    else:
        raise RequestError(
            f"holds the tensors {', '.join(sorted(arrays))}",
            where=str(path),
            advice="name them 'train' and 'validation', or store one tensor alone",
        )
    largest = max(_largest(part, path) for part in (train, validation))
    size = vocabulary or stated or largest + 1
    if largest >= size:
        raise RequestError(
            f"token {largest} is outside a vocabulary of {size}",
            where=str(path),
            advice="give a larger vocabulary",
        )
    return Corpus(path.name, size, train, validation, (note,))


def _largest(tokens: Tokens, path: Path) -> int:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise RequestError(
            f"tokens are one dimension of integers, not {tokens.dtype} of shape {list(tokens.shape)}",
            where=str(path),
            advice="flatten the array and store integers",
        )
    if tokens.size and int(tokens.min()) < 0:
        raise RequestError("holds a negative token", where=str(path), advice="number tokens from 0")
    return int(tokens.max()) if tokens.size else 0


def _read_npy(path: Path) -> tuple[dict[str, Tokens], int | None]:
    return {"tokens": np.load(path, mmap_mode="r", allow_pickle=False)}, None


def _read_safetensors(path: Path) -> tuple[dict[str, Tokens], int | None]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        stated = (file.metadata() or {}).get("vocabulary")
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, int(stated) if stated else None


_ARRAY_READERS: dict[str, Callable[[Path], tuple[dict[str, Tokens], int | None]]] = {
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
}
