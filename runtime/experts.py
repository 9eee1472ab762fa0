"""One expert of a packed weight `[experts, ...]`: its own fields, without decoding the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from .arrangement import Arrangement
from .representation import Representation


@lru_cache(maxsize=1024)
def fields_by_expert(
    representation: Representation, shape: tuple[int, ...], dtype: torch.dtype
) -> frozenset[str] | None:
    """The stored fields of a tensor `[experts, out, in]` that begin with the experts; all others are of all
    of them together. None where a field mixes experts (offsets into a tensor, groups of rows across them)."""
    if len(shape) != 3:
        return None
    alone = representation.layout(shape[1:], dtype)
    found = set()
    for name, field in representation.layout(shape, dtype).items():
        own = alone.get(name)
        if own is not None and field.stored_shape == (shape[0], *own.stored_shape) and not field.variable:
            found.add(name)
        elif own is None or field.stored_shape != own.stored_shape or field.variable:
            return None
    return frozenset(found)


def fields_of(names: frozenset[str], fields: Mapping[str, Tensor], expert: int) -> dict[str, Tensor]:
    """The fields of one expert, views of those of all."""
    return {name: tensor[expert] if name in names else tensor for name, tensor in fields.items()}


def arrangement_of(arrangement: Arrangement) -> Arrangement | None:
    """How one expert is read as a matrix where all are read like this; None where they do not come first."""
    if arrangement.view or (arrangement.order and arrangement.order[0] != 0):
        return None
    return replace(arrangement, order=tuple(dimension - 1 for dimension in arrangement.order[1:]))
