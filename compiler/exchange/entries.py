"""Entries of config.json of the kind that they must have, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import RequestError


def mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping, empty where there is none. Raises RequestError for anything else, as those below do."""
    value = data.get(key)
    found: Mapping[str, Any] = _checked(key, value or {}, isinstance(value, dict | None), "a mapping")
    return found


def mappings(data: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], ...]:
    """The mappings in a list or under names."""
    value = data.get(key)
    found = list(value.values()) if isinstance(value, dict) else [] if value is None else value
    right = isinstance(found, list) and all(isinstance(each, dict) for each in found)
    return tuple(_checked(key, found, right, "mappings"))


def names(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of names; one name stands for a list of one."""
    value = data.get(key)
    found = [] if value is None else [value] if isinstance(value, str) else value
    right = isinstance(found, list) and all(isinstance(each, str) for each in found)
    return tuple(_checked(key, found, right, "a list of names"))


def text(data: Mapping[str, Any], key: str) -> str:
    """A name, empty where there is none."""
    value = data.get(key)
    return str(_checked(key, value or "", isinstance(value, str | None), "a name"))


def _checked(key: str, value: Any, right: bool, expected: str) -> Any:
    if not right:
        raise RequestError(f"{key} is not {expected}", advice="is config.json complete?")
    return value
