"""Scaling laws: declarations, fits to the global optimum, intervals, and the composition of multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from ..errors import RequestError
from .base import Column, Law, Parameter, law_from_document
from .forms import LAWS


def find_law(name: str, conventions: Mapping[str, str | bool] | None = None) -> Law:
    """The law of this name under these conventions (`baseline`).

    Raises RequestError for an unknown name, with the nearest one, and for an unknown convention.
    """
    by_name = {law.name: law for law in LAWS}
    if name not in by_name:
        close = get_close_matches(name, by_name, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RequestError(f"no law is called {name!r}", advice=f"{hint}(known: {', '.join(by_name)})")
    return by_name[name].with_conventions(conventions or {})


__all__ = ["LAWS", "Column", "Law", "Parameter", "find_law", "law_from_document"]
