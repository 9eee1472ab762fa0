"""Names for things by their content: the hash of canonical JSON, of bytes, of files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

_LENGTH = 16  # hex digits kept: 64 bits, ample for the thousands of objects a store holds
_PIECE = 1 << 20  # bytes of a file in memory at once


def digest(value: object) -> str:
    """Hash of the canonical JSON of `value` (sorted keys, no spaces), 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digest_bytes(text.encode())


def digest_bytes(*parts: bytes) -> str:
    """Hash of byte strings in order, each preceded by its length so that boundaries count."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()[:_LENGTH]


def digest_file(path: Path) -> str:
    """`digest_bytes` of what a file holds, read piece by piece."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        state.update(os.fstat(stream.fileno()).st_size.to_bytes(8, "little"))
        while piece := stream.read(_PIECE):
            state.update(piece)
    return state.hexdigest()[:_LENGTH]


def digest_files(paths: list[Path], root: Path) -> str:
    """Hash of the names (relative to `root`) and contents of files, in sorted order."""
    parts: list[bytes] = []
    for path in sorted(paths):
        parts += [path.relative_to(root).as_posix().encode(), path.read_bytes()]
    return digest_bytes(*parts)
