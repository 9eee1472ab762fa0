"""Record on every weight which representation it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from .assignment import DENSE, Assignment, assign, assigned
from .base import Fact, Pass
from .facts import ASSIGNED, CANONICAL
from .sites import sites


@dataclass(frozen=True)
class Assign(Pass):
    """Note on the node of each weight what `assignments` say of its path; dense where they say nothing."""

    assignments: Mapping[str, Assignment]

    requires: ClassVar[frozenset[Fact]] = frozenset({CANONICAL})
    establishes: ClassVar[frozenset[Fact]] = frozenset({ASSIGNED})

    def rewrite(self, gm: fx.GraphModule) -> bool:
        changed = False
        for site in sites(gm):
            wanted = self.assignments.get(site.path, DENSE)
            changed |= assigned(site.weight) != wanted
            assign(site.weight, wanted)
        return changed
