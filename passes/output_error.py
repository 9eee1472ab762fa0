"""The error of a weight's output on recorded inputs, once weight and input have their representations."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.errors import RequestError
from ..runtime.projection import project_along
from ..runtime.representation import Representation
from .assignment import DENSE, Assignment, assigned
from .channels import Channels
from .record_ranges import ranges_of
from .rescale import Ledger
from .scalable import Group
from .sites import Site


def asks(site: Site) -> bool:
    """Whether a site's weight or input is to have a representation; one without any assignment may."""
    assignment = assigned(site.weight)
    return assignment is None or not assignment.is_dense


def represented(weight: Tensor, assignment: Assignment) -> Tensor:
    """A weight as the representation that it was given gives it back; by its code where it has one."""
    chosen, code = assignment.weight, assignment.code
    decoded = chosen.project(assignment.arrangement.matrix(weight)) if code is None else chosen.decode(code)
    return assignment.arrangement.restore(decoded.to(weight.dtype), tuple(weight.shape))


def group_error(ledger: Ledger, group: Group, scales: Tensor) -> float:
    """The output errors of a group's weights added up, were it scaled by `scales` `[keys]`.

    Each is the squared error over the squared output, on the recorded sample, of the represented weight on
    the represented input. A producer that is a weight counts too, its output multiplied back.
    Raises RequestError when no sample was recorded.
    """
    total = 0.0
    for member in group.members:
        if asks(member.site):
            factors = member.factors(scales)
            total += _error(ledger, member.channels, ledger.scaled(member, scales), factors, None)
    channels = group.producer.channels
    if channels is not None and asks(channels.site) and ranges_of(channels.site.node) is not None:
        share = group.producer.shares[0]
        divided = share.divided(ledger.read(share.node), scales)
        total += _error(ledger, channels, divided, None, scales)
    return total


def _error(
    ledger: Ledger, channels: Channels, weight: Tensor, columns: Tensor | None, rows: Tensor | None
) -> float:
    """Of a weight whose columns were multiplied with `columns`, or whose rows were divided by `rows`."""
    site, ranges = channels.site, ranges_of(channels.site.node)
    if ranges is None or not ranges.sample.numel():
        raise RequestError(
            "comparing output errors needs recorded inputs, and none were kept",
            where=site.path,
            advice="record ranges with samples=256",
        )
    assignment = assigned(site.weight) or DENSE
    small = ranges if columns is None else ranges.divided(columns)
    dense = product(channels, ranges.sample.double(), ledger.read(site.weight))
    dtype = small.sample.dtype
    found = product(
        channels,
        _projected(channels, small.sample, assignment.input).double(),
        represented(weight.to(dtype), assignment).double(),
    )
    if rows is not None:
        found = found * rows.to(found.device).reshape(-1, *([1] * (found.dim() - 2)))
    return float((found - dense).square().sum() / dense.square().sum().clamp_min(1e-300))


def _projected(channels: Channels, sample: Tensor, representation: Representation) -> Tensor:
    """The recorded inputs in their representation, along their channels."""
    if channels.site.operation.name.startswith("conv"):
        return project_along(sample, 1 - sample.dim(), representation, ())
    inputs = sample.reshape(len(sample) * channels.groups, -1)
    return project_along(inputs, -1, representation, ()).reshape(sample.shape)


def product(channels: Channels, sample: Tensor, weight: Tensor) -> Tensor:
    """The site's output without bias on a recorded sample, `[n, rows, ...]`."""
    site = channels.site
    if not site.operation.name.startswith("conv"):
        blocks = channels.blocks.matrix(weight).squeeze(-1)
        grouped = sample.reshape(sample.shape[0], *blocks.shape[:2])
        return torch.einsum("ngi,gio->ngo", grouped, blocks).flatten(1)
    given, rest = site.operation.positional(site.node.args, site.node.kwargs)
    given[0], given[1] = sample, weight
    given[2:3] = [None] * len(given[2:3])
    return site.node.target(*given, **rest)  # type: ignore[operator, no-any-return]
