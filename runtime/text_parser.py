"""Text to representations: the inverse of `str`, see `text`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, get_args, get_origin

from .errors import RequestError
from .representation import Representation
from .stage import Stage
from .stages import STAGES
from .text import DENSE, Token, Value, alternatives, choices, declared, is_choice, meant_by

Resolve = Callable[[str], Representation | None]

_TOKEN = re.compile(
    r"\s*(>>|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.:-])|[A-Za-z0-9_.:][\w.:-]*|[-+@(),=\[\]])"
)
_WORD = re.compile(r"[-+]?[\w.][\w.:+-]*")
_LONGEST, _DEEPEST = 10_000, 32


def from_text(text: str, resolve: Resolve = lambda name: None) -> Representation:
    """The representation that a text describes. `resolve` gives meaning to names that are no stage.

    Raises:
        RequestError: it is none; with the position in the text.
    """
    if len(text) > _LONGEST:
        raise RequestError(
            f"a representation of {len(text)} characters is too long", advice="write it in YAML"
        )
    return _Parser(text, resolve).whole()


@dataclass
class _Parser:
    text: str
    resolve: Resolve
    position: int = 0
    depth: int = 0

    def whole(self) -> Representation:
        found = self.chain()
        if self.text[self.position :].strip():
            self.fail("expected >>, + or the end")
        return found

    def chain(self) -> Representation:
        self.deeper()
        found = self.sum()
        while self.take(">>"):
            found = self.joined(lambda left, right: left >> right, found, self.sum())
        self.depth -= 1
        return found

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.fail("too many parentheses inside each other")

    def sum(self) -> Representation:
        found = self.product()
        while self.take("+"):
            found = self.joined(lambda left, right: left + right, found, self.product())
        return found

    def product(self) -> Representation:
        found = self.operand()
        while self.take("@"):
            found = self.joined(lambda left, right: left @ right, found, self.operand())
        return found

    def joined(
        self,
        join: Callable[[Representation, Representation], Representation],
        left: Representation,
        right: Representation,
    ) -> Representation:
        try:
            return join(left, right)
        except ValueError as error:
            self.fail(str(error))

    def operand(self) -> Representation:
        if self.take("("):
            found = self.chain()
            self.expect(")")
            return found
        before = self.position
        name = self.word()
        if name == DENSE:
            return Representation()
        known = {stage.kind: stage for stage in STAGES}
        if name in known:
            return Representation((self.stage(known[name]),))
        found_named = self.resolve(name)
        if found_named is None:
            self.position = before
            self.fail(f"{name!r} is no stage and no shipped spec (stages: {', '.join(known)})")
        return found_named

    def stage(self, kind: type[Stage]) -> Stage:
        start = self.position
        tokens = self.arguments(kind) if self.take("(") else []
        try:
            return kind.from_tokens(tokens)
        except (TypeError, ValueError) as error:
            self.position = start
            self.fail(f"{kind.kind}: {error}")

    def arguments(self, kind: type[Stage]) -> list[Token]:
        tokens: list[Token] = []
        chains = [name for name, hint in declared(kind).items() if Representation in alternatives(hint)]
        while not self.take(")"):
            if tokens:
                self.expect(",")
            before = self.position
            name = self.peek()
            self.position += len(name)
            if _WORD.fullmatch(name.strip()) and self.take("="):
                tokens.append((name.strip(), self.chain() if name.strip() in chains else self.value()))
            else:
                self.position = before
                tokens.append(("", self.value()))
        return tokens

    def value(self) -> Value:
        if self.take("["):
            self.deeper()
            items: list[Value] = []
            while not self.take("]"):
                if items:
                    self.expect(",")
                items.append(self.value())
            self.depth -= 1
            return items
        if self.peek().strip() == "(" or self.starts_chain():
            return self.chain()
        return self.word()

    def starts_chain(self) -> bool:
        """Whether a chain follows: `dense`, or a word before a parenthesis or an operator."""
        before = self.position
        word = self.peek().strip()
        self.position += len(self.peek())
        follows = self.peek().strip()
        self.position = before
        return word == DENSE or (bool(re.match(r"[A-Za-z]", word)) and follows in ("(", ">>", "+", "@"))

    def word(self) -> str:
        token = self.peek()
        if not _WORD.fullmatch(token.strip()):
            self.fail("expected a stage, a name or a number")
        self.position += len(token)
        return token.strip()

    def peek(self) -> str:
        """The next token with the blanks before it; empty at the end."""
        match = _TOKEN.match(self.text, self.position)
        if match is None and self.text[self.position :].strip():
            self.fail("this character means nothing here")
        return match.group() if match else ""

    def take(self, token: str) -> bool:
        found = self.peek()
        if found.strip() != token:
            return False
        self.position += len(found)
        return True

    def expect(self, token: str) -> None:
        if not self.take(token):
            self.fail(f"expected {token!r}")

    def fail(self, message: str) -> NoReturn:
        shown = self.text[self.position : self.position + 20].strip() or "the end"
        raise RequestError(
            f"{message}, at {shown!r} (character {self.position + 1})",
            advice="for example: hadamard(128) >> quantize(int4, group=128)",
        )


def options_from(kind: type[Stage], tokens: list[Token]) -> dict[str, Any]:
    """The options that tokens give a stage. Raises ValueError for a token that is none."""
    options = declared(kind)
    found: dict[str, Any] = {}
    for name, value in tokens:
        name = name or _meant(kind, value, found)
        if name not in options:
            raise ValueError(f"unknown option {name!r} (known: {', '.join(options)})")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = _converted(name, value, options[name])
    return found


def _meant(kind: type[Stage], value: Value, found: dict[str, Any]) -> str:
    """The option that a bare value is for."""
    options = declared(kind)
    meant = meant_by(kind, value) if isinstance(value, str) else []
    if len(meant) > 1:
        raise ValueError(f"{value} could be {' or '.join(meant)}; write {meant[0]}={value}")
    if meant:
        return meant[0]
    for name, hint in options.items():
        if name not in found and not is_choice(hint) and _converts(value, hint):
            return name
    raise ValueError(f"{value!s} fits no option (known: {', '.join(options)})")


def _converts(value: Value, hint: Any) -> bool:
    try:
        _converted("", value, hint)
    except ValueError:
        return False
    return True


def _converted(name: str, value: Value, hint: Any) -> Any:
    """A value as its option's type."""
    for inner in alternatives(hint):
        try:
            return _as(value, inner)
        except (TypeError, ValueError):
            continue
    raise ValueError(f"{name} cannot be {value!s}")


def _as(value: Value, kind: Any) -> Any:
    if isinstance(value, Representation) != (kind is Representation):
        raise ValueError(value)
    if kind is Representation:
        return value
    if get_origin(kind) is tuple and isinstance(value, list):
        inner, *rest = get_args(kind)
        kinds = [inner] * len(value) if rest == [...] else [inner, *rest]
        return tuple(_as(item, k) for item, k in zip(value, kinds, strict=True))
    if not isinstance(value, str):
        raise ValueError(value)
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if kind is float or (kind is int and re.fullmatch(r"[-+]?\d+", value)):
        return kind(value)
    if kind is str or value in choices(kind):
        return value
    raise ValueError(value)
