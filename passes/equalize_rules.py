"""How much of a channel's size goes from the input to the weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .output_error import asks, group_error
from .record_ranges import ChannelRanges, ranges_of
from .rescale import Ledger
from .scalable import Group

Rule = Literal["smoothquant", "aweq", "awq", "weights"]
_STEPS = 20  # AWQ's grid of strengths


def group_scales(rule: Rule, strength: float, limit: float, ledger: Ledger, group: Group) -> Tensor:
    """The factor of each of a group's keys, float64 `[keys]`, in [1 / limit, limit]; 1 for dead channels.

    smoothquant: s = max|X|^a / max|W|^(1 - a), Xiao et al. (arXiv 2211.10438), Eq. 4.
    aweq: the same with ranges, max - min, in place of magnitudes (Li et al., arXiv 2311.01305); with a = 1/2
    both ranges become sqrt(r_X r_W). A range here contains zero, as grids do, so that a channel that never
    changes, and a weight with one row, have one.
    weights: s = sqrt(r_1 / r_2) of the producer's rows and the readers' columns, Nagel et al. (DFQ, arXiv
    1906.04721), Eq. 11: both become sqrt(r_1 r_2).
    awq: s = mean|X|^a over sqrt(max s min s), with the strength of 0, 1/20, ... 19/20 that gives the least
    output error; Lin et al. (arXiv 2306.00978), Eq. 4 and 5.
    """
    if rule == "awq":
        return _searched(limit, ledger, group)
    inputs = _rows(ledger, group) if rule == "weights" else _inputs(rule, group)
    weights = _columns(rule, ledger, group)
    found = inputs.pow(strength) / weights.pow(1 - strength)
    return _settled(group, found, (inputs > 0) & (weights > 0), limit)


def _settled(group: Group, found: Tensor, alive: Tensor, limit: float) -> Tensor:
    return torch.where(group.free & alive, found, 1.0).clamp(1 / limit, limit)


def _inputs(rule: Rule, group: Group) -> Tensor:
    """The largest statistic of the inputs for each key."""
    largest = torch.zeros(group.producer.count, dtype=torch.float64)
    for member in group.members:
        ranges = ranges_of(member.site.node)
        if ranges is not None:
            found = member.gathered(_input(rule, ranges), group.producer.count, "amax", 0.0)
            largest = torch.maximum(largest, found)
    return largest


def _input(rule: Rule, ranges: ChannelRanges) -> Tensor:
    if rule == "aweq":
        return ranges.maximum.clamp_min(0) - ranges.minimum.clamp_max(0)
    return ranges.absmean if rule == "awq" else ranges.absmax


def _columns(rule: Rule, ledger: Ledger, group: Group) -> Tensor:
    """The largest size of the columns for each key, over the weights that are to have a representation."""
    largest = torch.zeros(group.producer.count, dtype=torch.float64)
    for member in group.members:
        if asks(member.site):
            columns = ledger.blocks(member.channels)
            size = columns.abs().amax((2, 3))
            if rule == "aweq":
                size = columns.amax((2, 3)).clamp_min(0) - columns.amin((2, 3)).clamp_max(0)
            found = member.gathered(size.flatten().double().cpu(), group.producer.count, "amax", 0.0)
            largest = torch.maximum(largest, found)
    return largest


def _rows(ledger: Ledger, group: Group) -> Tensor:
    """The largest magnitude of each row of the producer."""
    channels = group.producer.channels
    assert channels is not None, "a norm has no rows"
    return ledger.blocks(channels).abs().amax((1, 3)).flatten().double().cpu()


def _searched(limit: float, ledger: Ledger, group: Group) -> Tensor:
    """The best of AWQ's grid; that of strength 0 changes nothing."""
    inputs = _inputs("awq", group)
    alive = (inputs > 0) & group.free
    best, least = torch.ones_like(inputs), float("inf")
    for step in range(_STEPS):
        found = inputs.clamp_min(1e-300).pow(step / _STEPS)
        if bool(alive.any()):
            found = found / (found[alive].amax() * found[alive].amin()).sqrt()
        scales = _settled(group, found, alive, limit)
        error = group_error(ledger, group, scales)
        if error < least:
            best, least = scales, error
    return best
