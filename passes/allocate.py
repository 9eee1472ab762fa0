"""Write on a graph which representation each weight was chosen to have under a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import fx

from .assignment import DENSE, Assignment, assign, assigned
from .base import Fact, Keeps, Pass
from .facts import ASSIGNED
from .reach import Reach, note
from .sites import parameter_nodes, sites


@dataclass(frozen=True)
class Allocate(Pass):
    """The weights that `choice` names by path become what it says of them, in place of what a rule gave them.

    How a weight is read as a matrix stays as it was assigned. Weights that it does not name keep what they
    have, and so that nothing is left out silently, both these and names of no weight in the graph are noted.
    """

    choice: Mapping[str, Assignment]
    kind: Literal["allocate"] = "allocate"

    requires: ClassVar[frozenset[Fact]] = frozenset({ASSIGNED})
    keeps: ClassVar[Keeps] = "shapes"

    def __post_init__(self) -> None:
        if not self.choice:
            raise ValueError("the choice is empty; allocate at least one weight")

    def rewrite(self, gm: fx.GraphModule) -> bool:
        named = {str(node.target): node for node in parameter_nodes(gm) if node.target in self.choice}
        weights = {site.path: site.weight for site in sites(gm)} | named
        changed = False
        for path, weight in weights.items():
            if path in self.choice:
                before = assigned(weight) or DENSE
                wanted = replace(self.choice[path], arrangement=before.arrangement)
                changed |= wanted != before
                assign(weight, wanted)
        note(gm, self.name, self._reached(weights))
        return changed

    def _reached(self, weights: Mapping[str, fx.Node]) -> Iterator[Reach]:
        for path, weight in weights.items():
            found = assigned(weight) or DENSE
            kept = "" if path in self.choice else "no choice was made for it, stays "
            yield Reach(path, path in self.choice, f"{kept}{_text(found)}")
        for path in self.choice:
            if path not in weights:
                yield Reach(path, False, "no operation of this graph reads it as its weight")


def _text(assignment: Assignment) -> str:
    inputs = "" if assignment.input.is_dense else f" | input {assignment.input}"
    return f"{assignment.weight}{inputs}"
