"""The option `--figure`: an answer as a picture, beside what is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import say, writing

if TYPE_CHECKING:
    from ..plots.sketch import Sketch

FigureFile = Annotated[
    Path | None, typer.Option("--figure", metavar="FILE.svg", help="Draw the answer: .svg, .png or .pdf.")
]


def check_figure(path: Path | None) -> None:
    """Raise RequestError, before anything is computed, for a suffix that no picture has."""
    if path is not None:
        from ..plots.sketch import check_picture

        check_picture(path)


def write_figure(path: Path | None, sketches: Callable[[], Sequence[Sketch]]) -> None:
    """Draw what `sketches` makes, where a file is named. Raises RequestError when it cannot be written."""
    if path is None:
        return
    from ..plots.sketch import write_sketches

    with writing(path):
        write_sketches(sketches(), path)
    say(f"wrote {path}")
