"""Plain data (what YAML and JSON can hold) that remembers where every key and value was written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..runtime.errors import InvalidDocument, Problem

MAX_VALUES = 10_000  # after aliases are expanded
MAX_DEPTH = 32

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Address = tuple[str | int, ...]  # ('rules', 0, 'weights', 1, 'num_bits')

_SHOWN = 60  # characters of a value in a message
_ABSENT = object()


@dataclass(frozen=True)
class Mark:
    """Where a key and its value were written, 1-based (line, column). An entry of a list is its own key."""

    key: tuple[int, int]
    value: tuple[int, int]


_TOP = Mark((1, 1), (1, 1))


@dataclass(frozen=True)
class Document:
    """Plain data with the place of every value. Data from Python has no file and no marks, only paths."""

    data: dict[str, Plain]
    file: str = ""
    marks: Mapping[Address, Mark] = field(default_factory=dict)

    def locate(self, path: Address) -> Address:
        """The written part of a path: parts that a shorthand leaves out are passed over."""
        found: Address = ()
        for part in path:
            if self._value((*found, part)) is not _ABSENT:
                found = (*found, part)
        return found

    def where(self, path: Address) -> str:
        """The address of what was written at a path: `file:line:column`, or the path itself."""
        found = self.locate(path)
        line, column = self.marks.get(found, _TOP).value
        return f"{self.file}:{line}:{column}" if self.file else dotted(found)

    def problem(self, path: Address, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A finding at a path, as exact as what was written allows."""
        found = self.locate(path)
        if not self.file:
            return Problem(dotted(found), 0, 0, message, hint)
        mark = self.marks.get(found, _TOP)
        return Problem(self.file, *(mark.key if at_key else mark.value), message, hint)

    def _value(self, path: Address) -> object:
        node: Any = self.data
        for part in path:
            entry = isinstance(node, list) and isinstance(part, int) and part < len(node)
            if not entry and not (isinstance(node, dict) and part in node):
                return _ABSENT
            node = node[part]
        return node


def plain_document(data: Mapping[str, object]) -> Document:
    """A document from Python data (a mapping of text, numbers, booleans, None, lists and mappings), copied.

    Raises:
        InvalidDocument: something in it is none of these, or it is too large or too deep.
    """
    copier = _Copier()
    copied = copier.copy(data, ())
    if copier.problems or not isinstance(copied, dict):
        raise InvalidDocument(copier.problems)
    return Document(copied)


def dotted(path: Address) -> str:
    """A path as people write it, `rules[0].weights[1].num_bits`; `spec` for the whole."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "spec"


def describe(value: object) -> str:
    """A value in a few words for a message: short values as they are, long ones cut, others by kind."""
    names = {dict: "a mapping", list: "a list", tuple: "a list", type(None): "nothing"}
    if type(value) in names:
        return names[type(value)]
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (int, float, str)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def unsuitable(value: object) -> str | None:
    """Why a scalar has no place in a document, or None: numbers are finite and of 64 bits, text is valid."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else "a whole number of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "a number that is not finite"
    if isinstance(value, str):
        return "half of a surrogate pair" if any("\ud800" <= c <= "\udfff" for c in value) else None
    return f"a {type(value).__name__}, where text, a number, a boolean, a list or a mapping can stand"


def too_much(file: str, line: int, column: int, *, deep: bool) -> InvalidDocument:
    """The refusal of a document past the bounds of depth (`deep`) or size."""
    if deep:
        return InvalidDocument([Problem(file, line, column, f"nested deeper than {MAX_DEPTH}", "flatten it")])
    message = f"more than {MAX_VALUES:,} values, aliases expanded"
    return InvalidDocument([Problem(file, line, column, message, "split it with `extends`")])


class _Copier:
    """Python data to plain data, and problems by path."""

    def __init__(self) -> None:
        self.count = 0
        self.problems: list[Problem] = []

    def copy(self, value: object, path: Address) -> Plain:
        """A copy of `value`, which lies at `path`."""
        self.count += 1
        if self.count > MAX_VALUES or len(path) >= MAX_DEPTH:
            raise too_much(dotted(path[:3]), 0, 0, deep=len(path) >= MAX_DEPTH)
        if isinstance(value, (list, tuple)):
            return [self.copy(item, (*path, i)) for i, item in enumerate(value)]
        if isinstance(value, Mapping):
            return {
                key: self.copy(item, (*path, key)) for key, item in value.items() if self._word(key, path)
            }
        if reason := unsuitable(value):
            self._add(path, f"found {reason}")
            return None
        assert value is None or isinstance(value, (bool, int, float, str))
        return value

    def _word(self, key: object, path: Address) -> bool:
        fine = isinstance(key, str) and not unsuitable(key)
        if not fine:
            self._add(path, f"a key must be a word, found {describe(key)}")
        return fine

    def _add(self, path: Address, message: str) -> None:
        self.problems.append(Problem(dotted(path), 0, 0, message))
