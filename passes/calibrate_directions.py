"""Find the directions that inputs have most of on calibration batches, for weights that keep them exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor, fx

from ..runtime.cushion import Cushion
from ..runtime.input_grams import block_moments, leading_directions
from .assignment import assign, assigned
from .base import Fact, Keeps, Pass
from .facts import ASSIGNED
from .give_batches import BATCHES
from .input_rows import why_no_rows
from .reach import Reach, note
from .sites import Site, parameter_of, sites
from .watch_rows import watch_rows


@dataclass(frozen=True)
class CalibrateDirections(Pass):
    """Measure inputs of weights under `eigen_cushion` on calibration batches, before anything is trained.

    Directions are the leading eigenvectors of the inputs' second moments in the dense model; no labels are
    seen. Training starts with them, and measures them again as its estimator says.
    """

    kind: Literal["calibrate_directions"] = "calibrate_directions"

    requires: ClassVar[frozenset[Fact]] = frozenset({ASSIGNED, BATCHES})
    keeps: ClassVar[Keeps] = "shapes"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        wanted, found = list[Site](), list[Reach]()
        blocks, moments = dict[fx.Node, int | None](), dict[fx.Node, Tensor]()
        for site in sites(gm):
            assignment, parameter = assigned(site.weight), parameter_of(gm, site.weight)
            if assignment is None or assignment.cushion is None or parameter is None:
                continue
            why = why_no_rows(site, tuple(parameter.shape))
            if why:
                found.append(Reach(site.path, False, f"no directions of inputs: {why}"))
            else:
                wanted.append(site)
                blocks[site.weight] = assignment.cushion.block

        def add(site: Site, rows: Tensor) -> None:
            added = block_moments(rows, blocks[site.weight]).double()
            before = moments.get(site.weight)
            moments[site.weight] = added if before is None else before + added

        watch_rows(gm, wanted, add)
        found += [_settled(gm, weight, total) for weight, total in moments.items()]
        note(gm, self.name, found)
        return bool(wanted)


def _settled(gm: fx.GraphModule, weight: fx.Node, moments: Tensor) -> Reach:
    """Give a weight the directions of its inputs; what is said of them."""
    assignment, parameter = assigned(weight), parameter_of(gm, weight)
    assert assignment is not None
    assert parameter is not None
    projection = assignment.project_weight("")
    assert isinstance(projection, Cushion)
    size = assignment.arrangement.shape(tuple(parameter.shape))[-1]
    directions = leading_directions(moments, size, projection.most)
    assign(weight, replace(assignment, directions=directions))
    held = (directions * _times(moments, directions)).sum()
    share = float(held / moments.diagonal(dim1=-2, dim2=-1).sum())
    return Reach(str(weight.target), True, f"{directions.shape[-1]} directions hold {share:.0%} of inputs")


def _times(moments: Tensor, directions: Tensor) -> Tensor:
    """Block-diagonal moments times directions `[..., size, count]`."""
    blocks, block = moments.shape[-3:-1]
    *leading, size, count = directions.shape
    padded = directions.new_zeros(*leading, blocks * block, count)
    padded[..., :size, :] = directions
    product: Tensor = moments @ padded.reshape(*leading, blocks, block, count)
    return product.flatten(-3, -2)[..., :size, :]
