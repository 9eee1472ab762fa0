"""Errors of code that is not ours, in one line: what a model's file, factory or forward raised, and where."""

from __future__ import annotations

import traceback
from pathlib import Path

_LONGEST = 300  # characters of a message; torch's can run to pages


def said(error: BaseException) -> str:
    """`ValueError: width must be even`, the first line of what an error says."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def place(error: BaseException, file: str | None = None) -> str:
    """`model.py:12`, the innermost line of `file` that an error passed, or the innermost of all."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen ")]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    inside = [frame for frame in frames if file is not None and Path(frame.filename) == Path(file)]
    return "".join(f"{Path(last.filename).name}:{last.lineno}" for last in (inside or frames)[-1:])


def whole_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, for a record; never for a message."""
    return "".join(traceback.format_exception(error))
