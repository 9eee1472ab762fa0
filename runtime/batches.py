"""Batches of any form: tensors, and lists, tuples and mappings of them; first dimensions count examples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .errors import RequestError


def tensors(batch: Any) -> list[Tensor]:
    """Every tensor of a batch, in order."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def examples(batch: Any) -> int:
    """How many examples a batch has: the length of its first tensor; 1 where there is none."""
    first = next(iter(tensors(batch)), None)
    return len(first) if first is not None and first.dim() else 1


def moved(batch: Any, device: torch.device) -> Any:
    """The same batch with its tensors on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def split(batch: Any, parts: int) -> Iterator[tuple[Any, float]]:
    """A batch in parts, one after the other, each with its share of the examples.

    Every tensor with as many rows as there are examples is cut, in the same places. Raises RequestError when
    there are fewer examples than parts.
    """
    if parts == 1:
        yield batch, 1.0
        return
    count = examples(batch)
    if count < parts:
        raise RequestError(
            f"a batch of {count} examples cannot be split in {parts} parts",
            where="training settings",
            advice="accumulate over fewer parts, or give larger batches",
        )
    ends = [round(part * count / parts) for part in range(parts + 1)]
    for start, end in pairwise(ends):
        cut = slice(start, end)
        part = tree_map(lambda leaf: leaf[cut] if _is_counted(leaf, count) else leaf, batch)  # noqa: B023
        yield part, (end - start) / count


def same(first: Any, second: Any) -> bool:
    """Whether two batches hold the same, to the bit."""
    pairs = list(zip(tree_leaves(first), tree_leaves(second), strict=False))
    alike = len(tree_leaves(first)) == len(tree_leaves(second))
    return alike and all(_equal(one, other) for one, other in pairs)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool(one.equal(other))
    return type(one) is type(other) and bool(one == other)


def _is_counted(leaf: Any, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count
