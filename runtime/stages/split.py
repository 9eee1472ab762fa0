"""A split: a few rows or columns of a tensor in one representation, the rest in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import RequestError
from ..representation import Representation
from ..stage import Fields, HandsOn, Sized, Stage
from .parts import (
    DENSE,
    code_fields,
    nothing,
    nothing_sized,
    part_layout,
    part_widths,
    refuse_sharing,
    resized,
    restored,
)
from .precision import wide


@dataclass(frozen=True)
class Split(Stage):
    """Parts of a tensor, each with its own chain: outlier channels in one, the rest in the other.

    `fraction` of the slices along a dimension (rounded to the nearest whole number, at least one) go to
    `selected`, a chain; all others to `rest`. `along` says which slices: `columns` (of the last dimension) or
    `rows` (of the first). `by` says how they are chosen: `norm`, those with the largest sum of squares;
    `absmax`, those that hold the largest magnitudes; `first`, those in front. One bit per slice says where
    each went, except for `first`. With importance the norm counts squares times importance. For numbers
    rather than slices, write a sum: `sparsify` first and then the chain of what is left.
    """

    fraction: float
    selected: Representation = DENSE
    rest: Representation = DENSE
    along: Literal["columns", "rows"] = "columns"
    by: Literal["norm", "absmax", "first"] = "norm"
    kind: Literal["split"] = "split"

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {self.fraction}")
        if self.selected == self.rest:
            raise ValueError("selected and rest are the same chain; leave the split out")

    @property
    def hands_on(self) -> HandsOn:
        return "nothing"

    @property
    def scale_free(self) -> bool:
        return self.selected.scale_free and self.rest.scale_free

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape:
            raise RequestError("a single number has no slices to split", advice="leave it out with `ignore`")
        for part, part_shape in zip((self.selected, self.rest), self.shapes(shape), strict=True):
            part.check(part_shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return nothing(x), self._fields(x, None)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        return nothing(x), self._fields(x, importance.expand(x.shape)), None

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = tuple(carry.shape[1:])
        first, second = self.shapes(shape)
        selected = restored("selected", self.selected, fields, first, carry.dtype)
        rest = restored("rest", self.rest, fields, second, carry.dtype)
        joined, order = torch.cat((selected, rest), self._dim), self.order(fields.get("mask"))
        return joined if order is None else joined.index_select(self._dim, order.argsort())

    @property
    def marked(self) -> bool:
        """Whether bits say where each slice went."""
        return self.by != "first"

    def order(self, mask: Tensor | None) -> Tensor | None:
        """The slices in the order in which the parts hold them: those selected by `mask`, then the rest.

        None without a mask: the order that they have.
        """
        return None if mask is None else mask.to(torch.uint8).argsort(descending=True, stable=True)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        first, second = self.shapes(x.shape)
        fields = part_layout("selected", self.selected, first, x.dtype)
        fields |= part_layout("rest", self.rest, second, x.dtype)
        if self.by != "first":
            fields["mask"] = Sized((x.shape[self._dim],), torch.bool)
        return nothing_sized(x), fields

    def widths(self) -> dict[str, int]:
        inner = {**part_widths("selected", self.selected), **part_widths("rest", self.rest)}
        return inner if self.by == "first" else {**inner, "mask": 1}

    def shared_over(self, tensors: Sequence[Tensor]) -> Stage:
        refuse_sharing("split", self.selected, self.rest)
        return self

    def resized(self, rows: int, columns: int) -> Split:
        selected, rest = (resized(part, rows, columns) for part in (self.selected, self.rest))
        return replace(self, selected=selected, rest=rest)

    @property
    def _dim(self) -> int:
        return -1 if self.along == "columns" else 0

    def _count(self, size: int) -> int:
        """How many of `size` slices are selected."""
        return min(size, max(1, round(self.fraction * size)))

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the selected part and of the rest."""
        size = shape[self._dim]
        count = self._count(size)
        if self.along == "columns":
            return (*shape[:-1], count), (*shape[:-1], size - count)
        return (count, *shape[1:]), (size - count, *shape[1:])

    def _fields(self, x: Tensor, importance: Tensor | None) -> Fields:
        self.check(tuple(x.shape))
        x = x.contiguous()  # sums of squares must not depend on strides
        fields: Fields = {}
        size = x.shape[self._dim]
        order = torch.arange(size, device=x.device)
        if self.by != "first":
            order = self._scores(x, importance).argsort(descending=True, stable=True)
            mask = torch.zeros(size, dtype=torch.bool, device=x.device)
            fields["mask"] = mask.index_fill_(0, order[: self._count(size)], True)
        chosen = order.tensor_split([self._count(size)])
        for name, part, indices in zip(("selected", "rest"), (self.selected, self.rest), chosen, strict=True):
            index = indices.sort().values
            weight = None if importance is None else importance.index_select(self._dim, index)
            fields |= code_fields(name, part.encode(x.index_select(self._dim, index), weight))
        return fields

    def _scores(self, x: Tensor, importance: Tensor | None) -> Tensor:
        """How much each slice, `[size]`, speaks for being selected."""
        slices = _slices(x, self._dim).to(wide(x.dtype))
        if not x.numel():
            return slices.new_zeros(len(slices))
        if self.by == "absmax":
            return slices.abs().amax(-1)
        largest = slices.abs().amax()
        squares = (slices / torch.where(largest > 0, largest, 1)).square()  # neither overflow nor vanish
        return (squares if importance is None else squares * _slices(importance, self._dim)).sum(-1)


def _slices(x: Tensor, dim: int) -> Tensor:
    """The slices of a tensor along a dimension, each as a row."""
    return x.movedim(dim, 0).flatten(1) if x.ndim > 1 else x.unsqueeze(-1)
