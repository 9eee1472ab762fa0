"""Record on every weight which representation it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from .assignment import DENSE, Assignment, assign, assigned
from .base import Fact, Pass
from .facts import ASSIGNED, CANONICAL
from .sites import parameter_nodes


@dataclass(frozen=True)
class Assign(Pass):
    """Note on the node of each parameter what `assignments` say of its path; dense where they say nothing.

    A weight that is represented for one operation is read so by every other, here and in graphs beside.
    """

    assignments: Mapping[str, Assignment]

    requires: ClassVar[frozenset[Fact]] = frozenset({CANONICAL})
    establishes: ClassVar[frozenset[Fact]] = frozenset({ASSIGNED})

    def rewrite(self, gm: fx.GraphModule) -> bool:
        changed = False
        for weight in parameter_nodes(gm):
            wanted = self.assignments.get(str(weight.target), DENSE)
            changed |= (assigned(weight) or DENSE) != wanted
            assign(weight, wanted)
        return changed
