"""Representations as plain data and back, for files that must be readable without the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from .errors import RequestError
from .representation import Representation
from .stages import STAGES


def to_plain(representation: Representation) -> list[dict[str, Any]]:
    """Each stage as a mapping: its kind, and every option that is set."""
    return [
        {
            field.name: value
            for field in fields(stage)  # type: ignore[arg-type]
            if (value := getattr(stage, field.name)) is not None
        }
        for stage in representation.stages
    ]


def from_plain(stages: Sequence[Any]) -> Representation:
    """The inverse of `to_plain`. Raises RequestError for a kind or an option that is not known here."""
    known = {stage.kind: stage for stage in STAGES}
    found = []
    for entry in stages:
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if kind not in known:
            raise RequestError(
                f"no stage is called {kind!r} (known: {', '.join(known)})",
                advice="it was written by another version of rhoc",
            )
        try:
            found.append(known[kind](**entry))
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"{kind}: {error}", advice="it was written by another version of rhoc"
            ) from error
    return Representation(tuple(found))
