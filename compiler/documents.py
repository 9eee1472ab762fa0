"""YAML files to plain data with the place of every value.

Scalars follow the core schema of YAML 1.2, as editors do: `2:4` is text (YAML 1.1 reads it as 124) and
`yes` is no boolean. Work is bounded before anything is built: size, depth, and the number of values after
aliases are expanded. A document that cannot be read raises `InvalidDocument`, whose problems carry line and
column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..runtime.errors import InvalidDocument, Problem, RequestError
from .plain import MAX_DEPTH, MAX_VALUES, Address, Document, Mark, Plain, describe, too_much, unsuitable

MAX_BYTES = 300_000  # under a second for the worst of texts

_CORE = "tag:yaml.org,2002:"
_INT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"


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
        advice = "check its permissions"
        raise RequestError(f"cannot be read: {error.strerror}", where=str(path), advice=advice) from error
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


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with the core schema's scalars and a bound on depth and number of nodes."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self.file, self.depth, self.count = file, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH or self.count > MAX_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise too_much(self.file, mark.line + 1, mark.column + 1, deep=self.depth > MAX_DEPTH)
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
        self.open: set[yaml.Node] = set()
        self.marks: dict[Address, Mark] = {}
        self.problems: list[Problem] = []

    def build(self, node: yaml.Node, path: Address, key: tuple[int, int]) -> Plain:
        """The data of a node, its place noted under `path`."""
        self.count += 1
        if self.count > MAX_VALUES or len(path) >= MAX_DEPTH:
            raise too_much(self.file, *key, deep=len(path) >= MAX_DEPTH)
        if node in self.open:
            raise _invalid(self.file, key, "an alias stands inside what it repeats", "write it out")
        self.open.add(node)
        self.marks[path] = Mark(key, _position(node))
        data = self._data(node, path)
        self.open.remove(node)
        return data

    def _data(self, node: yaml.Node, path: Address) -> Plain:
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            return [self.build(item, (*path, i), _position(item)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            entries = self._entries(node)
            return {name: self.build(value, (*path, name), place) for name, value, place in entries}
        return self._scalar(node)

    def _entries(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, tuple[int, int]]]:
        first: dict[str, int] = {}
        for key, value in node.value:
            place = _position(key)
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_CORE}str" or unsuitable(key.value):
                found = _written(key)
                self._add(key, f"a key must be a word, found {found}", "put it in quotes if you mean text")
            elif key.value in first:
                message = f"{describe(key.value)} is given twice, first on line {first[key.value]}"
                self._add(key, message, "keep one of the two")
            else:
                first[key.value] = place[0]
                yield key.value, value, place

    def _scalar(self, node: yaml.Node) -> Plain:
        read = _SCALARS.get(node.tag.removeprefix(_CORE))
        if read is None:
            tag = describe(node.tag.replace(_CORE, "!!"))
            self._add(node, f"the tag {tag} is not allowed", "write plain text, numbers, lists and mappings")
            return None
        try:
            value: Plain = read(_scalar_text(node))
        except ValueError:
            self._add(node, f"{_written(node)} does not fit its tag", "remove the tag")
            return None
        if reason := unsuitable(value):
            self._add(node, f"found {reason}")
            return None
        return value

    def _add(self, node: yaml.Node, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, *_position(node), message, hint))


def _scalar_text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):  # a list or mapping that was tagged as a scalar
        raise ValueError(node.tag)
    return str(node.value)


def _nothing(text: str) -> None:
    if text.lower() not in ("", "~", "null"):
        raise ValueError(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _whole(text: str) -> int:
    if len(text) > 25:  # far past 64 bits; converting a long text takes time that grows with its square
        return 2**63
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _number(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))


_SCALARS: dict[str, Any] = {"null": _nothing, "bool": _truth, "int": _whole, "float": _number, "str": str}


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        return _Loader(text, file).get_single_node()
    except yaml.reader.ReaderError as error:
        message = f"the character {text[error.position]!r} is not allowed in YAML"
        raise _invalid(file, _end_of(text[: error.position]), message, "remove it") from None
    except yaml.MarkedYAMLError as error:
        raise InvalidDocument([_syntax(error, file)]) from None


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
    if error.context:
        trailing = problem.startswith("but ")
        problem = f"{error.context}, {problem}" if trailing else f"{problem} {error.context}"
    return Problem(file, *place, problem, "check indentation, colons, brackets and quotes")


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
