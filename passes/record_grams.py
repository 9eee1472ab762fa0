"""Record the second moments of every weight's inputs on calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..runtime.calibration import GramAccumulator
from .base import Fact, Pass
from .facts import ASSIGNED
from .give_batches import BATCHES, batches_of
from .input_rows import input_rows, why_no_rows
from .reach import Reach, note
from .sites import Site, parameter_of, sites

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
        wanted, missed = {}, []
        for site in sites(gm):
            parameter = parameter_of(gm, site.weight)
            why = "" if parameter is None else why_no_rows(site, tuple(parameter.shape))
            if why is None:
                wanted[site.node] = site
            else:
                missed.append(Reach(site.path, False, f"no second moments: {why}"))
        recording = _Recording(gm, wanted)
        with torch.no_grad():
            for batch in batches_of(gm):
                recording.run(*batch, enable_io_processing=False)
        for node, accumulators in recording.found.items():
            grams = [accumulator.result().matrix for accumulator in accumulators]
            node.meta[_KEY] = grams[0] if len(grams) == 1 else torch.stack(grams)
        note(gm, self.name, missed)
        return False


class _Recording(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, wanted: dict[fx.Node, Site]) -> None:
        super().__init__(gm)
        self.gm, self.wanted = gm, wanted
        self.found: dict[fx.Node, list[GramAccumulator]] = {}

    def run_node(self, n: fx.Node) -> Any:
        site = self.wanted.get(n)
        if site is not None and site.source is not None:
            self._add(site, self.env[site.source])
        return super().run_node(n)

    def _add(self, site: Site, x: Tensor) -> None:
        parameter = parameter_of(self.gm, site.weight)
        assert parameter is not None
        rows = input_rows(site, x, tuple(parameter.shape))
        pieces = rows.flatten(0, -3) if rows.dim() > 2 else rows.unsqueeze(0)
        if site.node not in self.found:
            self.found[site.node] = [GramAccumulator(rows.shape[-1], device=rows.device) for _ in pieces]
        for accumulator, piece in zip(self.found[site.node], pieces, strict=True):
            accumulator.add(piece)
