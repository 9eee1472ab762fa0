"""One expert of a packed weight `[experts, ...]`: its own fields, without decoding the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from .arrangement import Arrangement
from .last_product import stamp
from .representation import Representation

if TYPE_CHECKING:
    from .packed import Packed


@final
class Experts:
    """The experts of a packed weight that were asked for, until its fields are replaced or written to."""

    def __init__(self) -> None:
        self._key: object = None
        self._made: dict[int, Packed] = {}

    def of(self, weight: Packed, index: int) -> Packed | None:
        """The expert, its fields views of those of `weight`; None where matrices are stored together."""
        names = fields_by_expert(weight.representation, weight.matrix_shape, weight.encoded_dtype)
        arrangement = arrangement_of(weight.arrangement)
        if names is None or arrangement is None:
            return None
        count = weight.shape[0]
        if not -count <= index < count:
            raise IndexError(f"index {index} is out of range for {count} experts")
        stored, index = weight.fields(), index % count
        key = (weight.dtype, *(stamp(tensor) for tensor in stored.values()))
        if self._key != key:
            self._key, self._made = key, {}
        if index not in self._made:
            shape, fields = tuple(weight.shape[1:]), fields_of(names, stored, index)
            own = type(weight)(
                weight.representation, shape, fields, weight.encoded_dtype, weight.slots, arrangement
            )
            self._made[index] = own.to(weight.dtype)
        return self._made[index]


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
