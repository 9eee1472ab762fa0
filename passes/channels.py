"""The channels that a product sums over, and its weight with one place for each of them.

A weight is seen as blocks `[groups, in, out, kernel]`: a linear weight is one group with a kernel of one, a
grouped convolution has its groups, a stack of experts is one group per expert. Channel c of the input is
`(c // in, c % in)` of the blocks; row r of the result is `(r // out, r % out)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from ..runtime.arrangement import Arrangement
from .aten import value_of
from .sites import Site, parameter_of

_PRODUCTS = ("linear", "matmul")
_CONVOLUTIONS = ("conv", "conv_transpose")


@dataclass(frozen=True)
class Channels:
    """How one site reads the channels of its input. `blocks.matrix(weight)` is `[groups, in, out, kernel]`;
    `lead` leading dimensions of the input (experts) belong to the channel."""

    site: Site
    blocks: Arrangement
    lead: int

    @property
    def groups(self) -> int:
        """Groups of channels, each with rows of its own."""
        return self.blocks.view[0]

    def count(self, shape: tuple[int, ...]) -> int:
        """How many channels the input of a weight of this shape has."""
        groups, channels, _, _ = self.blocks.shape(shape)
        return groups * channels

    def rows(self, x: Tensor) -> Tensor:
        """The site's input as `[rows, channels]`."""
        channel = self.site.operation.channel % x.dim()
        kept = (*range(self.lead), channel)
        others = [d for d in range(x.dim()) if d not in kept]
        return x.permute(*others, *kept).reshape(-1, prod(x.shape[d] for d in kept))

    def label(self, labels: Tensor) -> Tensor | None:
        """The label of each channel `[channels]`; None when labels differ within a channel."""
        channel = self.site.operation.channel % labels.dim()
        for d in range(self.lead, labels.dim()):
            if d != channel and labels.stride(d) == 0 and labels.shape[d]:
                labels = labels.narrow(d, 0, 1)
        rows = self.rows(labels)
        return rows[0].long() if bool((rows == rows[:1]).all()) else None


def channels_of(gm: fx.GraphModule, site: Site) -> Channels | str:
    """The channels of a site, or why it has none that can be told apart."""
    parameter, source = parameter_of(gm, site.weight), value_of(site.source)
    name = site.operation.name
    if site.source is None:
        return f"{name} looks its weight up and has no input channels"
    if parameter is None or source is None:
        return "its shapes are not known"
    shape = tuple(parameter.shape)
    if name in _PRODUCTS and len(shape) >= 2:
        return _product(site, shape, tuple(source.shape))
    if name in _CONVOLUTIONS and source.dim() == len(shape):
        return _convolution(site, shape, source.shape[1])
    return f"the channels of this {name} are not told apart"


def _product(site: Site, shape: tuple[int, ...], source: tuple[int, ...]) -> Channels | str:
    lead = shape[:-2]
    if lead and source[:-2] != lead:
        return "one input is multiplied with several matrices"
    experts = prod(lead)
    if site.arrangement(shape).is_plain:
        return Channels(site, Arrangement((experts, shape[-2], shape[-1], 1), (0, 2, 1, 3)), len(lead))
    return Channels(site, Arrangement((experts, shape[-2], shape[-1], 1)), len(lead))


def _convolution(site: Site, shape: tuple[int, ...], channels: int) -> Channels:
    if transposed(site):  # [in, out / groups, *kernel]
        rows = value_of(site.node)
        assert rows is not None
        groups = rows.shape[1] // shape[1]
        return Channels(site, Arrangement((groups, shape[0] // groups, shape[1], prod(shape[2:]))), 0)
    groups = channels // shape[1]  # [out, in / groups, *kernel]
    view = (groups, shape[0] // groups, shape[1], prod(shape[2:]))
    return Channels(site, Arrangement(view, (0, 2, 1, 3)), 0)


def transposed(site: Site) -> bool:
    """Whether a convolution is a transposed one."""
    general = site.node.target is torch.ops.aten.convolution.default
    return site.operation.name == "conv_transpose" or (general and bool(site.node.args[6]))
