"""The largest of many numbers, exactly as many as asked for, the same ones on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ORDERED = {  # integers that are in the order of non-negative floats of that width; NaN comes out largest
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}
_PIECE = 1 << 13  # groups compared at once: what stays in a core's cache
_FEW = 4  # up to this many, comparing all pairs is faster than partitioning


def largest(scores: Tensor, count: int) -> Tensor:
    """Bool like `scores`, `[..., n]` non-negative floats: true at the `count` largest of every row.

    Of equal scores the first in order stay, so that the count is exact.
    """
    size = scores.shape[-1]
    if count >= size or not scores.numel():
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if count <= 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keys = scores.contiguous().view(_ORDERED[scores.dtype.itemsize]).reshape(-1, size)
    mask = _by_comparison(keys, count) if size <= _FEW else _by_threshold(keys, count)
    return mask.reshape(scores.shape)


def positions(mask: Tensor) -> Tensor:
    """Where a bool tensor is true, as ascending int64 positions `[k]` in its flattened form."""
    if mask.device.type == "cpu":  # numpy is many times faster here
        return torch.from_numpy(np.flatnonzero(mask.contiguous().numpy()))
    return mask.reshape(-1).nonzero().squeeze(-1)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where a bool tensor is true and +0.0 elsewhere; what `torch.where` needs ten times as long for."""
    bits = mask.view(torch.int8).to(_ORDERED[x.dtype.itemsize]).neg_()  # all ones, or none
    return bits.bitwise_and_(x.view(bits.dtype)).view(x.dtype)


def _by_comparison(keys: Tensor, count: int) -> Tensor:
    """A number stays when fewer than `count` others are larger, or equal and earlier."""
    if keys.device.type == "cpu":  # an operation on few numbers costs numpy a third of torch's time
        return torch.from_numpy(_compared(keys.numpy(), count))
    planes = keys.unbind(-1)
    beaten = [torch.zeros(planes[0].shape, dtype=torch.uint8, device=keys.device) for _ in planes]
    for first in range(len(planes)):
        for second in range(first + 1, len(planes)):
            second_wins = (planes[second] > planes[first]).view(torch.uint8)
            beaten[first] += second_wins
            beaten[second] += 1 - second_wins
    return torch.stack([times < count for times in beaten], -1)


def _compared(keys: NDArray[np.signedinteger[Any]], count: int) -> NDArray[np.bool_]:
    """The mask of `_by_comparison`, all pairs of one distance together and some groups at a time."""
    groups, size = keys.shape
    mask = np.empty((groups, size), dtype=np.bool_)
    for start in range(0, groups, _PIECE):
        planes = np.ascontiguousarray(keys[start : start + _PIECE].T)
        beaten = np.empty(planes.shape, dtype=np.int8)
        beaten[:] = np.arange(size)[:, None]  # by all that come before it, until they turn out smaller
        for distance in range(1, size):
            later_wins = (planes[distance:] > planes[:-distance]).view(np.int8)
            beaten[distance:] -= later_wins
            beaten[:-distance] += later_wins
        np.less(beaten.T, count, out=mask[start : start + _PIECE])
    return mask


def _by_threshold(keys: Tensor, count: int) -> Tensor:
    """A number stays when it is above the smallest that does, or equal and among the first of these."""
    threshold = _threshold(keys, count)
    mask = keys >= threshold
    surplus = _counted(mask) - count
    if not bool(surplus.any()):
        return mask
    level = positions(keys == threshold)
    row = level // keys.shape[-1]
    ties = torch.bincount(row, minlength=len(keys))
    order = torch.arange(len(level), device=keys.device) - (ties.cumsum(0) - ties)[row]
    too_many = level[order >= (ties - surplus)[row]]
    mask.view(-1).index_fill_(0, too_many, False)
    return mask


def _threshold(keys: Tensor, count: int) -> Tensor:
    """The smallest key that stays, `[rows, 1]`."""
    rank = keys.shape[-1] - count
    if keys.device.type == "cpu":  # numpy is ten times faster here
        split = np.partition(keys.numpy(), rank, axis=-1)[:, rank : rank + 1]
        return torch.from_numpy(np.ascontiguousarray(split))
    return keys.kthvalue(rank + 1, dim=-1, keepdim=True).values


def _counted(mask: Tensor) -> Tensor:
    """True entries of every row."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=-1))
    return mask.sum(-1)
