"""Which modules a rule speaks of: an exact module path, a class name, or `re:` and a pattern.

The language is that of compressed-tensors: a pattern must match from the beginning of the module path and may
end before it does (`re.match`); a class name also covers subclasses, up to `torch.nn.Module` itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Protocol

PATTERN = "re:"
_SHOWN = 60  # characters of a pattern in a message


class Targeting(Protocol):
    """What matching needs to know of a rule."""

    @property
    def targets(self) -> tuple[str, ...]:
        """What the rule speaks of."""

    @property
    def ignore(self) -> tuple[str, ...]:
        """What it leaves alone among these."""


def match(rule: Targeting, path: str, class_names: Collection[str]) -> bool:
    """Whether a rule applies to a module: it is among the targets and not ignored.

    `class_names` are the names of the module's classes in method resolution order, up to `Module`.
    """
    return covers(rule.targets, path, class_names) and not covers(rule.ignore, path, class_names)


def covers(entries: Iterable[str], path: str, class_names: Collection[str]) -> bool:
    """Whether any of the entries names a module."""
    return any(_covers(entry, path, class_names) for entry in entries)


def fault(entry: str) -> str | None:
    """Why an entry can match nothing, in words, or None when it is well formed."""
    if not entry.strip():
        return "an empty name matches nothing"
    if not entry.startswith(PATTERN):
        return None
    pattern = entry.removeprefix(PATTERN)
    shown = pattern if len(pattern) <= _SHOWN else f"{pattern[:_SHOWN]}..."
    if not pattern:
        return "the pattern is empty; 're:.*' matches every module"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error"
            )  # a pattern that a later Python will read differently is ambiguous now
            re.compile(pattern)
    except re.error as error:
        position = f" at character {error.pos + 1}" if error.pos is not None else ""
        return f"the pattern {shown!r} is no regular expression: {error.msg}{position}"
    except (OverflowError, Warning) as error:
        return f"the pattern {shown!r} is no usable regular expression: {error}"
    except RecursionError:
        return f"the pattern {shown!r} is no usable regular expression: nested too deeply"
    return None


def _covers(entry: str, path: str, class_names: Collection[str]) -> bool:
    if entry.startswith(PATTERN):
        return _compiled(entry.removeprefix(PATTERN)).match(path) is not None
    return entry == path or entry in class_names


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
