"""The reference form: parameters hold decoded values, and only inputs are still projected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from .assignment import assigned
from .base import Fact, Keeps, Pass
from .container import Inserter
from .facts import ASSIGNED, CANONICAL, DECODED
from .sites import parameter_of, sites


@dataclass(frozen=True)
class Decode(Pass):
    """Project represented inputs and outputs of operations whose parameters hold decoded values already."""

    requires: ClassVar[frozenset[Fact]] = frozenset({CANONICAL, ASSIGNED})
    establishes: ClassVar[frozenset[Fact]] = frozenset({DECODED})
    keeps: ClassVar[Keeps] = "shapes"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        inserter = Inserter(gm)
        for site in list(sites(gm)):
            assignment = assigned(site.weight)
            parameter = parameter_of(gm, site.weight)
            if assignment is not None and parameter is not None:
                inserter.project_input(site, assignment, parameter.dim(), keep_rotated=False)
                inserter.project_output(site, assignment, parameter.dim())
        return inserter.count > 0
