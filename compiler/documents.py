"""YAML to plain data that remembers where every key and value was written.

Scalars follow the core schema of YAML 1.2, as editors do: `2:4` is text (YAML 1.1 reads it as 124) and
`yes` is no boolean. Work is bounded before anything is built: size, depth, and the number of values after
aliases are expanded. A document that cannot be read raises `InvalidDocument`, whose problems carry line and
column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..runtime.errors import InvalidDocument, Problem, RequestError

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000  # after aliases are expanded
MAX_DEPTH = 32

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Address = tuple[str | int, ...]  # ('rules', 0, 'weights', 1, 'num_bits')

_CORE = "tag:yaml.org,2002:"
_INT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"


@dataclass(frozen=True)
class Mark:
    """Where a key and its value were written, 1-based (line, column). An entry of a list is its own key."""

    key: tuple[int, int]
    value: tuple[int, int]


@dataclass(frozen=True)
class Document:
    """Plain data with the place of every value. Data from Python has no marks, only paths."""

    data: dict[str, Plain]
    file: str = ""
    marks: Mapping[Address, Mark] = field(default_factory=dict)

    def locate(self, path: Address) -> Address:
        """The longest written part of a path: parts that a shorthand leaves out are passed over."""
        found: Address = ()
        for part in path:
            if self.value((*found, part)) is not _ABSENT:
                found = (*found, part)
        return found

    def value(self, path: Address) -> object:
        """What was written at a path; a private marker when nothing was."""
        node: Any = self.data
        for part in path:
            inside = (
                part in node
                if isinstance(node, dict)
                else isinstance(node, list) and part in range(len(node))
            )
            if not inside:
                return _ABSENT
            node = node[part]
        return node

    def problem(self, path: Address, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A finding at a path, as exact as what was written allows."""
        found = self.locate(path)
        if not self.file:
            return Problem(dotted(found) or "spec", 0, 0, message, hint)
        mark = self.marks.get(found, _TOP)
        return Problem(self.file, *(mark.key if at_key else mark.value), message, hint)

    def where(self, path: Address) -> str:
        """The address of what was written at a path: `file:line:column`, or the path itself."""
        found = self.locate(path)
        line, column = self.marks.get(found, _TOP).value
        return f"{self.file}:{line}:{column}" if self.file else dotted(found)


_ABSENT = object()
_TOP = Mark((1, 1), (1, 1))


def dotted(path: Address) -> str:
    """A path as people write it: `rules[0].weights[1].num_bits`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read_document(path: Path) -> Document:
    """The document in a file.

    Raises:
        RequestError: no such file, or it cannot be read.
        InvalidDocument: it is not the YAML described at the top of this file.
    """
    if not path.is_file():
        kind = "this is a folder, not a file" if path.is_dir() else "there is no such file"
        raise RequestError(kind, where=str(path), advice="check the path")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return parse_document(content, str(path))


def parse_document(content: bytes, file: str) -> Document:
    """The document in the bytes of a file; `file` is the name that problems carry."""
    if len(content) > MAX_BYTES:
        raise _invalid(
            file, (1, 1), f"the file is larger than {MAX_BYTES:,} bytes", "split it with `extends`"
        )
    node = _compose(_decode(content, file), file)
    if node is None:
        raise _invalid(file, (1, 1), "the file is empty", "`rhoc specs show int4` prints an example")
    builder = _Builder(file)
    data = builder.build(node, (), _position(node))
    if not builder.problems and not isinstance(data, dict):
        message = f"the top level must be a mapping of keys to values, found {describe(data)}"
        builder.problems.append(Problem(file, *_position(node), message, "begin with `version: 1`"))
    if builder.problems or not isinstance(data, dict):
        raise InvalidDocument(builder.problems)
    return Document(data, file, builder.marks)


def plain_document(data: Mapping[str, object]) -> Document:
    """A document from Python data (a mapping of text, numbers, booleans, None, lists and mappings), copied.

    Raises:
        InvalidDocument: something in it is none of these, or it is too large or too deep.
    """
    copier = _Copier()
    copied = copier.copy(data, ())
    if copier.problems or not isinstance(copied, dict):
        raise InvalidDocument(
            copier.problems or [Problem("spec", 0, 0, f"must be a mapping, found {describe(data)}")]
        )
    return Document(copied)


def describe(value: object) -> str:
    """A value in a few words for a message: short values as they are, long ones by kind."""
    names = {dict: "a mapping", list: "a list", tuple: "a list", type(None): "nothing"}
    if type(value) in names:
        return names[type(value)]
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (int, float, str)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with the core schema's scalars and a bound on depth and number of nodes."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth, self.count = 0, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH or self.count > MAX_VALUES:
            depth, count = f"nested deeper than {MAX_DEPTH}", f"more than {MAX_VALUES:,} values"
            place = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=depth if self.depth > MAX_DEPTH else count, problem_mark=place)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Builder:
    """Composed nodes to plain data, marks and problems."""

    def __init__(self, file: str) -> None:
        self.file, self.count = file, 0
        self.marks: dict[Address, Mark] = {}
        self.problems: list[Problem] = []

    def build(self, node: yaml.Node, path: Address, key: tuple[int, int]) -> Plain:
        """The data of a node, its place noted under `path`."""
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            raise _invalid(
                self.file, key, f"aliases expand to more than {MAX_VALUES:,} values or in a circle"
            )
        self.marks[path] = Mark(key, _position(node))
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            return [self.build(item, (*path, i), _position(item)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            return {
                name: self.build(value, (*path, name), place) for name, value, place in self._entries(node)
            }
        return self._scalar(node)

    def _entries(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, tuple[int, int]]]:
        first: dict[str, int] = {}
        for key, value in node.value:
            place = _position(key)
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_CORE}str":
                self._add(
                    key, f"a key must be a word, found {_written(key)}", "put it in quotes if you mean text"
                )
            elif key.value in first:
                message = f"{key.value!r} is given twice, first on line {first[key.value]}"
                self._add(key, message, "keep one of the two")
            else:
                first[key.value] = place[0]
                yield key.value, value, place

    def _scalar(self, node: yaml.Node) -> Plain:
        try:
            value: Plain = _SCALARS[node.tag.removeprefix(_CORE)](node.value)
        except KeyError:
            known = node.tag.replace(_CORE, "!!")
            self._add(
                node, f"the tag {known} is not allowed", "write plain text, numbers, lists and mappings"
            )
            return None
        except (ValueError, TypeError, AttributeError):
            self._add(node, f"{_written(node)} does not fit its tag", "remove the tag")
            return None
        if reason := unsuitable(value):
            self._add(node, f"found {reason}")
            return None
        return value

    def _add(self, node: yaml.Node, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, *_position(node), message, hint))


class _Copier:
    """Python data to plain data, and problems by path."""

    def __init__(self) -> None:
        self.count = 0
        self.problems: list[Problem] = []

    def copy(self, value: object, path: Address) -> Plain:
        """A copy of `value`, which lies at `path`."""
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            message = f"holds more than {MAX_VALUES:,} values, or is nested deeper than {MAX_DEPTH}"
            raise InvalidDocument([Problem("spec", 0, 0, message)])
        if isinstance(value, (list, tuple)):
            return [self.copy(item, (*path, i)) for i, item in enumerate(value)]
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str) or unsuitable(key):
                    self._add(path, f"a key must be a word, found {describe(key)}")
            return {key: self.copy(item, (*path, key)) for key, item in value.items() if isinstance(key, str)}
        if reason := unsuitable(value):
            self._add(path, f"found {reason}")
            return None
        assert value is None or isinstance(value, (bool, int, float, str))
        return value

    def _add(self, path: Address, message: str) -> None:
        self.problems.append(Problem(dotted(path) or "spec", 0, 0, message))


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        return _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        message = f"the character {text[error.position]!r} is not allowed in YAML"
        raise _invalid(file, _end_of(text[: error.position]), message, "remove it") from None
    except yaml.MarkedYAMLError as error:
        raise InvalidDocument([_syntax(error, file)]) from None


def _whole(text: str) -> int:
    if len(text) > 25:  # far past 64 bits; converting a long text takes time that grows with its square
        return 2**63
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_SCALARS: dict[str, Any] = {
    "null": lambda text: None,
    "bool": _truth,
    "int": _whole,
    "float": lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.lower())),
    "str": str,
}


def _decode(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        message = f"this is not UTF-8 text (byte 0x{content[error.start]:02x})"
        raise _invalid(file, _end_of(before), message, "save the file as UTF-8") from None


def _syntax(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problem = error.problem or "not valid YAML"
    if "'\\t'" in problem:
        return Problem(file, *place, "a tab where YAML wants spaces", "indent with spaces")
    context = f" {error.context}" if error.context else ""
    return Problem(file, *place, f"{problem}{context}", "check indentation, colons, brackets and quotes")


def _written(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return describe(node.value)
    return describe({} if isinstance(node, yaml.MappingNode) else [])


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _end_of(before: str) -> tuple[int, int]:
    """Line and column of what follows a piece of text."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _invalid(file: str, place: tuple[int, int], message: str, hint: str = "") -> InvalidDocument:
    return InvalidDocument([Problem(file, *place, message, hint)])
