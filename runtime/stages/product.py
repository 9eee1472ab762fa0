"""A product of two representations: a matrix as left times right, each factor with stages of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..gaussian import Source
from ..marchenko_pastur import REFERENCE_SHAPE, leftover
from ..representation import Representation
from ..stage import Fields, HandsOn, Sized, Stage
from . import parts
from .factors import best_factors, fitted_left, fitted_right
from .precision import full_precision, wide

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Product(Stage):
    """The tensor as a matrix `[rows, n]` (all but the last dimension are rows): left `[rows, rank]` times
    right `[rank, n]`, from its singular value decomposition.

    `rank` is the number of columns of left; unset, all of them: min(rows, n). A rank above that means that.
    `left` and `right` are the chains of the factors, dense unless given; each factor carries the square
    root of the singular values. `rounds` of alternating least squares follow: each factor is fitted anew to
    the other one as it decodes, which makes up for much of what the chains lose, and the best round is
    kept; with dense factors there is nothing to fit. With importance the decomposition is that of the
    columns times the root of their mean importance (weighted SVD).
    """

    rank: int | None = None
    left: Representation = parts.DENSE
    right: Representation = parts.DENSE
    rounds: int = 0
    kind: Literal["product"] = "product"

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be positive, got {self.rank}")
        if not 0 <= self.rounds <= 100:
            raise ValueError(f"rounds must be between 0 and 100, got {self.rounds}")
        if self.rounds and self.dense_factors:
            raise ValueError(
                "rounds fit factors to what the other one lost, and both are dense; leave it out"
            )

    @property
    def hands_on(self) -> HandsOn:
        return "nothing"

    @property
    def dense_factors(self) -> bool:
        """Whether the factors lose nothing, but for rounding."""
        return not (self.left.lossy or self.right.lossy)

    @property
    def scale_free(self) -> bool:
        return self.left.scale_free and self.right.scale_free

    def check(self, shape: tuple[int, ...]) -> None:
        for factor, factor_shape in zip((self.left, self.right), self.shapes(shape), strict=True):
            factor.check(factor_shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return parts.nothing(x), self._fields(x, None)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        if x.is_meta or not x.numel():
            return *self.encode(x), None
        columns = importance.expand(x.shape).reshape(self._matrix_shape(tuple(x.shape))).mean(0)
        columns = columns.to(wide(x.dtype))
        return parts.nothing(x), self._fields(x, columns.clamp_min(columns.max() * 1e-6)), None

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = tuple(carry.shape[1:])
        left_shape, right_shape = self.shapes(shape)
        left = parts.restored("left", self.left, fields, left_shape, carry.dtype)
        right = parts.restored("right", self.right, fields, right_shape, carry.dtype)
        with full_precision(left.device):
            return (left @ right).reshape(shape)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        left, right = self.shapes(x.shape)
        fields = parts.part_layout("left", self.left, left, x.dtype)
        return parts.nothing_sized(x), fields | parts.part_layout("right", self.right, right, x.dtype)

    def widths(self) -> dict[str, int]:
        return {**parts.part_widths("left", self.left), **parts.part_widths("right", self.right)}

    def shared_over(self, tensors: Sequence[Tensor]) -> Stage:
        parts.refuse_sharing("product", self.left, self.right)
        return self

    def resized(self, rows: int, columns: int) -> Product:
        left, right = (parts.resized(factor, rows, columns) for factor in (self.left, self.right))
        share = min(rows, columns) / min(REFERENCE_SHAPE)
        rank = None if self.rank is None else max(1, round(self.rank * share))
        return replace(self, rank=rank, left=left, right=right)

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """With dense factors, what a rank leaves over of a large Gaussian matrix of the reference's shape."""
        if source.keeps or not self.dense_factors:
            return None
        return source, 0.0 if self.rank is None else leftover(self.rank)

    def _matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return math.prod(shape[:-1]), shape[-1] if shape else 1

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of the factors of a tensor of this shape."""
        rows, columns = self._matrix_shape(shape)
        rank = min(rows, columns) if self.rank is None else min(self.rank, rows, columns)
        return (rows, rank), (rank, columns)

    def _fields(self, x: Tensor, columns: Tensor | None) -> Fields:
        left_shape, right_shape = self.shapes(tuple(x.shape))
        if x.is_meta or not x.numel():
            left, right = x.new_zeros(left_shape), x.new_zeros(right_shape)
            return self._encoded("left", left)[0] | self._encoded("right", right)[0]
        matrix = x.detach().contiguous().reshape(left_shape[0], right_shape[1]).to(wide(x.dtype))
        with full_precision(x.device):
            return self._factored(matrix, left_shape[1], columns, x.dtype)

    def _factored(self, matrix: Tensor, rank: int, columns: Tensor | None, dtype: torch.dtype) -> Fields:
        left, right = best_factors(matrix, rank, columns)
        best, left = self._encoded("left", left.to(dtype))
        right_fields, right = self._encoded("right", right.to(dtype))
        best |= right_fields
        if not self.rounds:
            return best
        least = _error(matrix, left, right, columns)
        for _ in range(self.rounds):
            # right for left as it decodes, left for that right, and right once more for that left
            _, right = self._encoded("right", fitted_right(left, matrix).to(dtype))
            fields, left = self._encoded("left", fitted_left(right, matrix, columns).to(dtype))
            right_fields, right = self._encoded("right", fitted_right(left, matrix).to(dtype))
            error = _error(matrix, left, right, columns)
            if error < least:
                best, least = fields | right_fields, error
        return best

    def _encoded(self, side: Side, factor: Tensor) -> tuple[Fields, Tensor]:
        """The fields of a factor, and what they decode to in the precision of the computation."""
        representation = self.left if side == "left" else self.right
        code = representation.encode(factor)
        return parts.code_fields(side, code), representation.restore(code).to(wide(factor.dtype))


def _error(matrix: Tensor, left: Tensor, right: Tensor, columns: Tensor | None) -> float:
    squares = (matrix - left @ right).double().square_().sum(0)
    return float((squares if columns is None else squares * columns).sum())
