"""The text form of representations: `hadamard(128) >> (sparsify(0.99) + quantize(int4, group=128))`.

Operators bind as Python's do: `@` first, then `+`, then `>>`. A stage is its kind and, in parentheses, what
differs from the defaults: bare words and numbers where they can only mean one option, `name=value` elsewhere.
A chain may stand as a value. `dense` is no stage at all. `from_text` reads what `str` writes.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from .representation import Representation
    from .stage import Stage

DENSE = "dense"

Value = Any  # str, Representation, or a list of these: what a token holds before it meets its option
Token = tuple[str, Value]  # ("", value) for a bare one


def chain_text(stages: tuple[Stage, ...]) -> str:
    """A chain of stages."""
    if len(stages) == 1:
        return str(stages[0])
    return " >> ".join(f"({stage})" if stage.kind == "sum" else str(stage) for stage in stages) or DENSE


def stage_text(stage: Stage) -> str:
    """A stage: its kind and the options that differ from their defaults."""
    arguments = ", ".join(_argument_texts(stage))
    return f"{stage.kind}({arguments})"


def sum_text(terms: tuple[Representation, ...]) -> str:
    """Terms of a sum, chains in parentheses."""
    return " + ".join(_operand(term) for term in terms)


def _operand(term: Representation) -> str:
    bare = len(term.stages) == 1 and term.stages[0].kind != "sum"
    return str(term) if bare or not term.stages else f"({term})"


def _argument_texts(stage: Stage) -> Iterator[str]:
    options = declared(type(stage))
    for position, (name, hint) in enumerate(options.items()):
        value = getattr(stage, name)
        if value == default_of(type(stage), name):
            continue
        word = is_choice(hint) and meant_by(type(stage), value) == [name]
        bare = word or (position == 0 and not is_choice(hint) and isinstance(value, int | float | str))
        yield value_text(value) if bare else f"{name}={value_text(value)}"


def value_text(value: Value) -> str:
    """An option's value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(value_text(item) for item in value)}]"
    return str(value)


@lru_cache(maxsize=256)
def declared(kind: type[Stage]) -> Mapping[str, Any]:
    """The options of a stage with their types, in order, `kind` left out."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind) if f.name != "kind"}  # type: ignore[arg-type]


def default_of(kind: type[Stage], name: str) -> Any:
    """The default of an option; MISSING when there is none."""
    field: Field[Any] = next(f for f in fields(kind) if f.name == name)  # type: ignore[arg-type]
    return field.default_factory() if field.default_factory is not MISSING else field.default


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, None left out; the type itself when it is none."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(inner for inner in get_args(hint) if inner is not type(None))
    return (hint,)


def is_choice(hint: Any) -> bool:
    """Whether an option is one word of a few."""
    return all(get_origin(inner) is Literal for inner in alternatives(hint)) and all(
        isinstance(word, str) for word in choices(hint)
    )


def meant_by(kind: type[Stage], word: object) -> list[str]:
    """The options of a stage that a bare word could be for."""
    return [name for name, hint in declared(kind).items() if is_choice(hint) and word in choices(hint)]


def choices(hint: Any) -> tuple[Any, ...]:
    """The words of an option that is one of a few."""
    return tuple(w for inner in alternatives(hint) if get_origin(inner) is Literal for w in get_args(inner))
