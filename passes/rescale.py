"""Divide what a producer makes and multiply it back in the weights that read it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from .assignment import assigned
from .base import PipelineError
from .channels import Channels
from .record_ranges import ChannelRanges, ranges_of, set_ranges
from .scalable import Group, Member
from .sites import parameter_of, sites


@dataclass
class Ledger:
    """Parameters as they will be, in float64: however many factors they take, they are rounded once.

    Raises PipelineError where calibration has chosen the code of a weight, for it would no longer fit.
    """

    gm: fx.GraphModule
    wide: dict[int, tuple[nn.Parameter, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site in sites(self.gm):
            assignment = assigned(site.weight)
            if assignment is not None and assignment.code is not None:
                raise PipelineError(f"{site.path} has a code already; put passes that scale before calibrate")

    def read(self, node: fx.Node) -> Tensor:
        """The parameter that a node reads, float64."""
        parameter = self._parameter(node)
        entry = self.wide.get(id(parameter))
        return parameter.detach().double() if entry is None else entry[1]

    def blocks(self, channels: Channels) -> Tensor:
        """The weight of a site as blocks `[groups, in, out, kernel]`, in float32 at least."""
        parameter = self._parameter(channels.site.weight)
        entry = self.wide.get(id(parameter))
        weight = parameter.detach() if entry is None else entry[1]
        return channels.blocks.matrix(weight.to(torch.promote_types(weight.dtype, torch.float32)))

    def scaled(self, member: Member, scales: Tensor) -> Tensor:
        """The weight of a member, its columns multiplied with their factors of `scales` `[keys]`."""
        weight = self.read(member.site.weight)
        factors = member.factors(scales).reshape(member.channels.groups, -1, 1, 1).to(weight.device)
        blocks = member.channels.blocks
        return blocks.restore(blocks.matrix(weight) * factors, tuple(weight.shape))

    def scale(self, group: Group, scales: Tensor) -> None:
        """Divide the producer by `scales` `[keys]`, multiply the members; recorded statistics follow."""
        for share in group.producer.shares:
            self._keep(share.node, share.divided(self.read(share.node), scales))
        fresh: dict[int, ChannelRanges] = {}
        for member in group.members:
            self._keep(member.site.weight, self.scaled(member, scales))
            old = ranges_of(member.site.node)
            if old is not None:
                if id(old) not in fresh:
                    fresh[id(old)] = old.divided(member.factors(scales))
                set_ranges(member.site.node, fresh[id(old)])

    def write(self) -> None:
        """Round every changed parameter to its dtype and put it into the model."""
        with torch.no_grad():
            for parameter, wide in self.wide.values():
                parameter.copy_(wide)
        self.wide.clear()

    def _keep(self, node: fx.Node, new: Tensor) -> None:
        parameter = self._parameter(node)
        self.wide[id(parameter)] = (parameter, new)

    def _parameter(self, node: fx.Node) -> nn.Parameter:
        parameter = parameter_of(self.gm, node)
        assert parameter is not None, f"%{node.name} reads no parameter"
        return parameter
