"""What operations read while the graph runs on its calibration batches, as rows of their weights' inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from .give_batches import batches_of
from .input_rows import input_rows
from .sites import Site, parameter_of


def watch_rows(gm: fx.GraphModule, wanted: Iterable[Site], take: Callable[[Site, Tensor], None]) -> None:
    """Run the graph on every batch and give `take` the `input_rows` of each wanted site, batch by batch.

    Nothing is said against rows of the wanted sites (`why_no_rows`), and their weights are parameters.
    """
    watch = _Watch(gm, wanted, take)
    with torch.no_grad():
        for batch in batches_of(gm):
            watch.run(*batch, enable_io_processing=False)


class _Watch(fx.Interpreter):
    def __init__(
        self, gm: fx.GraphModule, wanted: Iterable[Site], take: Callable[[Site, Tensor], None]
    ) -> None:
        super().__init__(gm)
        self.gm, self.wanted, self.take = gm, {site.node: site for site in wanted}, take

    def run_node(self, n: fx.Node) -> Any:
        """The result of a node, its input handed on first."""
        site = self.wanted.get(n)
        if site is not None and site.source is not None:
            parameter = parameter_of(self.gm, site.weight)
            assert parameter is not None
            self.take(site, input_rows(site, self.env[site.source], tuple(parameter.shape)))
        return super().run_node(n)
