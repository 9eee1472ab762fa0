"""What a question says of the columns of a law, beside N, D and rho: for every format, or for one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..runtime.errors import RequestError
from ..runtime.laws.base import Features, Law
from .hints import did_you_mean

_PAIR = re.compile(r"(?:(?P<format>.+):)?(?P<name>\w+)=(?P<value>[^=]+)")


@dataclass(frozen=True)
class Columns:
    """every: columns of all formats; own: those of one, by its name, which come before."""

    every: Features = field(default_factory=dict)
    own: Mapping[str, Features] = field(default_factory=dict)

    def of(self, name: str) -> Features:
        """The columns of a format."""
        return {**self.every, **self.own.get(name, {})}

    def check(self, names: Iterable[str]) -> None:
        """Raises RequestError for columns of a format that is not asked about."""
        known = list(names)
        for name in self.own:
            if name not in known:
                raise RequestError(f"--column names the format {name!r}", advice=did_you_mean(name, known))


def read_columns(given: Sequence[str]) -> Columns:
    """From texts `NAME=VALUE` and `FORMAT:NAME=VALUE`. Raises RequestError for any other."""
    every: dict[str, float | str] = {}
    own: dict[str, dict[str, float | str]] = {}
    for text in given:
        found = _PAIR.fullmatch(text)
        if found is None:
            raise RequestError(
                f"{text!r} is no NAME=VALUE", advice="write --column group_size=64, or int4:group_size=64"
            )
        place = every if found["format"] is None else own.setdefault(found["format"], {})
        place[found["name"]] = found["value"]
    return Columns(every, own)


def checked(law: Law, given: Features) -> dict[str, float | str]:
    """Columns with numbers as numbers. Raises RequestError for one that the law does not read, and for a
    value that it cannot have.
    """
    read = {column.name: column for column in law.every_column}
    for column in given:
        if column not in read:
            advice = did_you_mean(column, read) if read else "it reads N, D and the format alone"
            raise RequestError(f"the {law.name} law reads no column {column!r}", advice=advice)
    return {column: read[column].read(value) for column, value in given.items()}


def features_of(
    law: Law, name: str, given: Features, known: Mapping[str, Features] | None = None
) -> dict[str, float | str]:
    """Columns of a format, as its law reads them: given, else known of its runs, else of dense numbers
    where the baseline has no others.

    Raises RequestError as `checked`, and for a column without default that is not given.
    """
    found = {**(known or {}).get(name, {}), **checked(law, given)}
    needed = [column.name for column in law.reads if column.default is None and column.name not in found]
    if name == law.baseline:
        found |= {column: law.dense_features[column] for column in needed if column in law.dense_features}
    missing = [column for column in needed if column not in found]
    if missing:
        raise RequestError(
            f"the {law.name} law needs {', '.join(missing)} of {name!r}",
            advice=f"give it: --column {name}:{missing[0]}=VALUE",
        )
    return found


def columns_in_words(law: Law, of: Mapping[str, Features]) -> tuple[str, ...]:
    """What was asked about, by format: columns that are not those of dense numbers, and those that nobody
    gave.
    """
    dense = law.dense_features
    moved = {
        name: [f"{key} {_said(value)}" for key, value in features.items() if value != dense.get(key)]
        for name, features in of.items()
    }
    told = "; ".join(f"{name} {', '.join(words)}" for name, words in moved.items() if words)
    left = [
        f"{c.name} {_said(c.default)} ({c.meaning})"
        for c in law.reads
        if c.default is not None and any(c.name not in features for features in of.values())
    ]
    head = "at their defaults where nothing else is said (--column NAME=VALUE gives others)"
    found = {"columns": told, head: ", ".join(left)}
    return tuple(f"{name}: {words}" for name, words in found.items() if words)


def _said(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, float | int) else str(value)
