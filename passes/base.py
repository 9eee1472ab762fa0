"""The contract of a pass, and what a broken fact looks like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import fx

from ..runtime.errors import WorkError

Keeps = Literal["bits", "values", "shapes"]


class Broken(WorkError):
    """A fact that does not hold. `where` is the node and the path of the parameter or module it concerns."""

    def __init__(self, message: str, *, at: str = "") -> None:
        super().__init__(message, where=at)


class PipelineError(WorkError):
    """Passes that cannot be ordered, or a pass that did not do what it declares."""


@dataclass(frozen=True)
class Fact:
    """A named invariant of a graph, with the one function that verifies it by raising `Broken`."""

    name: str
    verify: Callable[[fx.GraphModule], None]

    def __str__(self) -> str:
        return self.name


class Pass(ABC):
    """A rewrite of one graph, as a frozen dataclass whose fields are its options.

    `requires` are the facts it reads, `establishes` those that hold after it, `breaks` those that no longer
    do; `follows` are facts that come before it where another pass establishes them. `keeps` is what it
    promises of the output: the same `bits`, the same `values` within rounding, or only the same `shapes`. The
    graph is valid before and after `rewrite` and need not be in between.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    requires: ClassVar[frozenset[Fact]] = frozenset()
    establishes: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    follows: ClassVar[frozenset[Fact]] = frozenset()
    keeps: ClassVar[Keeps] = "bits"

    @property
    def name(self) -> str:
        """How orders, records and errors call this pass."""
        return type(self).__name__

    @abstractmethod
    def rewrite(self, gm: fx.GraphModule) -> bool:
        """Change `gm` in place; whether anything was changed."""
