"""What a pass reached and what it did not, so that nothing is left out silently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

_KEY = "rhoc.reach"


@dataclass(frozen=True)
class Reach:
    """What became of one parameter in one pass: `what` was done to it, or why it was not reached."""

    path: str
    reached: bool
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {'' if self.reached else 'not reached, '}{self.what}"


def note(gm: fx.GraphModule, name: str, found: Iterable[Reach]) -> None:
    """Record what the pass called `name` reached."""
    gm.meta.setdefault(_KEY, {})[name] = tuple(found)


def reaches(gm: fx.GraphModule) -> dict[str, tuple[Reach, ...]]:
    """What each pass that has run reached, by its name."""
    return dict(gm.meta.get(_KEY, {}))
