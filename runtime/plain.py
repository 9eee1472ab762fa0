"""Representations as plain data and back, for files that must be readable without the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args, get_origin

from .errors import RequestError
from .representation import Representation
from .stages import STAGES
from .text import alternatives, declared

_ELSEWHERE = "it was written by another version of rhoc"


def to_plain(representation: Representation) -> list[dict[str, Any]]:
    """Each stage as a mapping: its kind, and every option that is set; chains inside a stage as lists."""
    return [options_to_plain(stage) for stage in representation.stages]


def options_to_plain(stage: Any) -> dict[str, Any]:
    """A stage (or another declared choice) as a mapping, kind first, unset options left out."""
    values = {field.name: getattr(stage, field.name) for field in fields(stage)}
    plain = {name: _to_plain(value) for name, value in values.items() if value is not None}
    return {"kind": stage.kind} | plain


def _to_plain(value: Any) -> Any:
    if isinstance(value, Representation):
        return to_plain(value)
    return [_to_plain(item) for item in value] if isinstance(value, tuple) else value


def from_plain(stages: Sequence[Any]) -> Representation:
    """The inverse of `to_plain`. Raises RequestError for a kind or an option that is not known here."""
    known = {stage.kind: stage for stage in STAGES}
    found = []
    for entry in stages:
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if kind not in known:
            message = f"no stage is called {kind!r} (known: {', '.join(known)})"
            raise RequestError(message, advice=_ELSEWHERE)
        types = declared(known[kind])
        options = {name: value for name, value in entry.items() if name != "kind"}
        try:
            found.append(known[kind](**{n: _from_plain(v, types.get(n, Any)) for n, v in options.items()}))
        except (TypeError, ValueError) as error:
            raise RequestError(f"{kind}: {error}", advice=_ELSEWHERE) from error
    return Representation(tuple(found))


def _from_plain(value: Any, hint: Any) -> Any:
    """A list as what its option holds: a chain, or a tuple of whatever."""
    if not isinstance(value, list):
        return value
    for kind in alternatives(hint):
        if kind is Representation:
            return from_plain(value)
        if get_origin(kind) is tuple:
            return tuple(_from_plain(item, get_args(kind)[0]) for item in value)
    raise ValueError(f"a list where {hint} was expected")
