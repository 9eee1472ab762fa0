"""Keep one known line of a C library off standard output, where commands print their documents."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = 1


@contextmanager
def without_line(line: str) -> Iterator[None]:
    """Lines of standard output that are exactly `line` are left out inside; all others come out afterwards.

    For output that goes past Python's `sys.stdout`, straight to the process's file descriptor. Where there
    is no such descriptor nothing is done.
    """
    try:
        kept = os.dup(_STDOUT)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as caught:
        _flush()
        os.dup2(caught.fileno(), _STDOUT)
        try:
            yield
        finally:
            _flush()
            os.dup2(kept, _STDOUT)
            os.close(kept)
            caught.seek(0)
            others = [found for found in caught if found.rstrip(b"\r\n") != line.encode()]
            for found in others:
                _write(found)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_STDOUT, data) :]


def _flush() -> None:
    """What Python and C still hold back for standard output is written."""
    if sys.stdout is not None:
        sys.stdout.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
