"""Calibration batches, for the passes of a pipeline that run the graph themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, fx

from .base import Broken, Fact, Pass
from .record_ranges import check_batches

_KEY = "rhoc.batches"


def batches_of(gm: fx.GraphModule) -> list[tuple[Tensor, ...]]:
    """The batches that were given: the tensors that the graph takes, batch by batch."""
    found: list[tuple[Tensor, ...]] = gm.meta.get(_KEY, [])
    return found


def _given(gm: fx.GraphModule) -> None:
    """There is a batch at least, and each has as many tensors as the graph has inputs."""
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    batches = batches_of(gm)
    if not batches:
        raise Broken("there are no calibration batches")
    for number, batch in enumerate(batches):
        if len(batch) != len(inputs):
            raise Broken(f"batch {number} has {len(batch)} tensors, and the graph takes {len(inputs)}")
        for node, tensor in zip(inputs, batch, strict=True):
            expected = node.meta.get("val")
            if isinstance(expected, Tensor) and expected.shape != tensor.shape:
                shapes = f"{list(tensor.shape)}, and the graph is for {list(expected.shape)}"
                raise Broken(f"batch {number} has shape {shapes}", at=f"%{node.name}")


BATCHES = Fact("batches", _given)


@dataclass(frozen=True)
class GiveBatches(Pass):
    """Keep calibration batches with the graph. Raises RequestError unless it takes their shapes."""

    batches: Sequence[Sequence[Tensor]] = field(default=(), repr=False, compare=False)

    establishes: ClassVar[frozenset[Fact]] = frozenset({BATCHES})

    def rewrite(self, gm: fx.GraphModule) -> bool:
        check_batches(gm, self.batches)
        gm.meta[_KEY] = [tuple(batch) for batch in self.batches]
        return False
