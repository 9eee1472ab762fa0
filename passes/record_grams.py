"""Record the second moments of every weight's inputs on calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..runtime.calibration import GramAccumulator
from .base import Fact, Pass
from .facts import ASSIGNED
from .give_batches import BATCHES
from .input_rows import why_no_rows
from .reach import Reach, note
from .sites import Site, parameter_of, sites
from .watch_rows import watch_rows

_KEY = "rhoc.gram"


def gram_of(node: fx.Node) -> Tensor | None:
    """The mean of x x^T of an operation's inputs, `[in, in]` or one for each leading dimension of the weight;
    None where it was not recorded."""
    found = node.meta.get(_KEY)
    return found if isinstance(found, Tensor) else None


@dataclass(frozen=True)
class RecordGrams(Pass):
    """Run the graph on calibration batches and keep the second moments of the inputs of represented
    weights."""

    requires: ClassVar[frozenset[Fact]] = frozenset({ASSIGNED, BATCHES})

    def rewrite(self, gm: fx.GraphModule) -> bool:
        wanted, missed = list[Site](), list[Reach]()
        found: dict[fx.Node, list[GramAccumulator]] = {}
        for site in sites(gm):
            parameter = parameter_of(gm, site.weight)
            why = "" if parameter is None else why_no_rows(site, tuple(parameter.shape))
            if why is None:
                wanted.append(site)
            else:
                missed.append(Reach(site.path, False, f"no second moments: {why}"))

        def add(site: Site, rows: Tensor) -> None:
            pieces = rows.flatten(0, -3) if rows.dim() > 2 else rows.unsqueeze(0)
            if site.node not in found:
                found[site.node] = [GramAccumulator(rows.shape[-1], device=rows.device) for _ in pieces]
            for accumulator, piece in zip(found[site.node], pieces, strict=True):
                accumulator.add(piece)

        watch_rows(gm, wanted, add)
        for node, accumulators in found.items():
            grams = [accumulator.result().matrix for accumulator in accumulators]
            node.meta[_KEY] = grams[0] if len(grams) == 1 else torch.stack(grams)
        note(gm, self.name, missed)
        return False
