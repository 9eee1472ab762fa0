"""Take out of the biases what represented weights add to the mean of their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from .assignment import assigned
from .aten import Reads
from .base import Fact, Keeps, Pass
from .calibrate import CALIBRATED
from .channels import Channels, channels_of
from .facts import ASSIGNED
from .output_error import represented
from .reach import Reach, note
from .record_ranges import RANGES, ranges_of
from .sites import Site, parameter_of, sites


@dataclass(frozen=True)
class CorrectBias(Pass):
    """b := b - (W_q - W) E[x] for each represented weight W_q with a bias, E[x] as recorded.

    Nagel et al. (DFQ, arXiv 1906.04721), section 4.2; Li et al. (AWEQ, arXiv 2311.01305). Each layer is
    corrected for its own weight's error against the inputs that the dense model has. That is the topological
    order with nothing left to wait for: once the layers before have their dense means back, E[x] is what was
    recorded, and no shift is counted twice. What remains is the shift that errors of inputs make in
    nonlinear operations. Where a convolution pads, E[x] is taken for what it pads with too.

    The dense model's own output changes, by design: run it when equalisation and ranges are done, and once;
    recorded ranges do not hold after it.
    """

    kind: Literal["correct_bias"] = "correct_bias"

    requires: ClassVar[frozenset[Fact]] = frozenset({RANGES, ASSIGNED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({RANGES})
    follows: ClassVar[frozenset[Fact]] = frozenset({CALIBRATED})
    keeps: ClassVar[Keeps] = "shapes"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        read = Reads.of(gm)
        found = []
        for site in sites(gm):
            assignment = assigned(site.weight)
            if assignment is None or assignment.weight.is_dense:
                continue
            bias = parameter_of(gm, site.bias)
            channels = channels_of(gm, site)
            if isinstance(channels, str):
                found.append(Reach(site.path, False, channels))
            elif bias is None:
                found.append(Reach(site.path, False, "it has no bias"))
            elif len(read.all_of(bias)) != 1:
                found.append(Reach(site.path, False, f"{_path(site)} is also read elsewhere"))
            else:
                found.append(_correct(gm, channels, bias))
        note(gm, self.name, found)
        return any(reach.reached for reach in found)


def _correct(gm: fx.GraphModule, channels: Channels, bias: Tensor) -> Reach:
    site = channels.site
    shift = mean_shift(gm, channels).reshape(bias.shape)
    with torch.no_grad():
        bias.copy_(bias.double() - shift)
    size = float(shift.abs().max()) if shift.numel() else 0.0
    return Reach(site.path, True, f"{_path(site)} changed by up to {size:.3g}")


def _path(site: Site) -> str:
    """The path of a site's bias."""
    assert site.bias is not None
    return str(site.bias.target)


def mean_shift(gm: fx.GraphModule, channels: Channels) -> Tensor:
    """(W_q - W) E[x], float64 `[rows]`: by how much the weight's representation moves the mean output."""
    site, ranges = channels.site, ranges_of(channels.site.node)
    weight, assignment = parameter_of(gm, site.weight), assigned(site.weight)
    assert weight is not None
    assert ranges is not None
    assert assignment is not None
    dense = weight.detach()
    error = represented(dense, assignment).double() - dense.double()
    blocks = channels.blocks.matrix(error).sum(3)  # [groups, in, out]
    means = ranges.mean.to(blocks.device).reshape(blocks.shape[:2])
    return torch.einsum("gi,gio->go", means, blocks).flatten()
