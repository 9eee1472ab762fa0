"""Scaling laws: declarations, fits to the global optimum, intervals, and the composition of multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from ..errors import RequestError
from .base import Law
from .chinchilla import Chinchilla
from .decoupled import Decoupled
from .representation import Representation

LAWS: tuple[type[Law], ...] = (Chinchilla, Decoupled, Representation)


def find_law(name: str, conventions: Mapping[str, str | bool] | None = None) -> Law:
    """The law of this name under these conventions (fields of its class).

    Raises RequestError for an unknown name, with the nearest one, and for an unknown convention.
    """
    by_name = {law.name: law for law in LAWS}
    if name not in by_name:
        close = get_close_matches(name, by_name, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RequestError(f"no law is called {name!r}", advice=f"{hint}(known: {', '.join(by_name)})")
    law = by_name[name]
    known = set(law().conventions)
    for key in conventions or {}:
        if key not in known:
            raise RequestError(
                f"the {name} law has no convention {key!r}",
                advice=f"it has: {', '.join(sorted(known)) or 'none'}",
            )
    return law(**(conventions or {}))


__all__ = ["LAWS", "Chinchilla", "Decoupled", "Law", "Representation", "find_law"]
