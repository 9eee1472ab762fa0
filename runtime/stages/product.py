"""A product of two representations: a matrix as left times right, each factor with stages of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..representation import Representation
from ..stage import Fields, HandsOn, Sized, Stage
from .parts import code_fields, nothing, nothing_sized, part_layout, part_widths, restored


@dataclass(frozen=True)
class Product(Stage):
    """The tensor as a matrix `[rows, n]` (all but the last dimension are rows): left `[rows, rank]` times right
    `[rank, n]`, from its singular value decomposition.

    `rank` is the number of columns of left; unset, all of them: min(rows, n). A rank above that means that.
    `left` and `right` are the chains of the factors, dense unless given; each factor carries the square root of
    the singular values. `rounds` of alternating least squares follow: each factor is fitted anew to the other
    one as it decodes, which makes up for much of what the chains lose; with dense factors there is nothing to
    fit. With importance the decomposition is that of the columns times the root of their mean importance
    (weighted SVD).
    """

    rank: int | None = None
    left: Representation = Representation()
    right: Representation = Representation()
    rounds: int = 0
    kind: Literal["product"] = "product"

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be positive, got {self.rank}")
        if not 0 <= self.rounds <= 100:
            raise ValueError(f"rounds must be between 0 and 100, got {self.rounds}")
        if self.rounds and not (self.left.lossy or self.right.lossy):
            raise ValueError("rounds fit factors to what the other one lost, and both are dense; leave it out")

    @property
    def hands_on(self) -> HandsOn:
        return "nothing"

    @property
    def scale_free(self) -> bool:
        return self.left.scale_free and self.right.scale_free

    def check(self, shape: tuple[int, ...]) -> None:
        for factor, factor_shape in zip((self.left, self.right), self._shapes(shape), strict=True):
            factor.check(factor_shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return nothing(x), self._fields(x, None)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        columns = importance.expand(x.shape).reshape(-1, x.shape[-1]).mean(0)
        return nothing(x), self._fields(x, columns.clamp_min(columns.max() * 1e-6)), None

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = tuple(carry.shape[1:])
        left_shape, right_shape = self._shapes(shape)
        left = restored("left", self.left, fields, left_shape, carry.dtype)
        right = restored("right", self.right, fields, right_shape, carry.dtype)
        with torch.autocast(left.device.type, enabled=False):
            return (left @ right).reshape(shape)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        left, right = self._shapes(x.shape)
        fields = part_layout("left", self.left, left, x.dtype)
        return nothing_sized(x), fields | part_layout("right", self.right, right, x.dtype)

    def widths(self) -> dict[str, int]:
        return {**part_widths("left", self.left), **part_widths("right", self.right)}

    def _shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of the factors of a tensor of this shape."""
        columns = shape[-1] if shape else 1
        rows = math.prod(shape[:-1])
        rank = min(rows, columns) if self.rank is None else min(self.rank, rows, columns)
        return (rows, rank), (rank, columns)

    def _fields(self, x: Tensor, columns: Tensor | None) -> Fields:
        left_shape, right_shape = self._shapes(tuple(x.shape))
        if x.is_meta or not x.numel():
            left, right = x.new_zeros(left_shape), x.new_zeros(right_shape)
            return self._encoded("left", left)[0] | self._encoded("right", right)[0]
        matrix = x.detach().reshape(left_shape[0], right_shape[1]).to(_wide(x.dtype))
        left, right = _factors(matrix, left_shape[1], columns)
        fields, left = self._encoded("left", left.to(x.dtype))
        for _ in range(self.rounds):
            _, right = self._encoded("right", _solved(left, matrix).to(x.dtype))
            left = _solved_left(right, matrix, columns)
            fields, left = self._encoded("left", left.to(x.dtype))
        if self.rounds:
            right = _solved(left, matrix)
        return fields | self._encoded("right", right.to(x.dtype))[0]

    def _encoded(self, side: Literal["left", "right"], factor: Tensor) -> tuple[Fields, Tensor]:
        """The fields of a factor, and what they decode to in the precision of the computation."""
        representation = self.left if side == "left" else self.right
        code = representation.encode(factor)
        return code_fields(side, code), representation.restore(code).to(_wide(factor.dtype))


def _factors(matrix: Tensor, rank: int, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """The best `[rows, rank]` and `[rank, n]` in (weighted) least squares, the singular values shared evenly."""
    weight = None if columns is None else columns.to(matrix.dtype).sqrt()
    u, s, vh = torch.linalg.svd(matrix if weight is None else matrix * weight, full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank].sqrt(), vh[:rank]
    top = u.gather(0, u.abs().argmax(0, keepdim=True))
    sign = torch.where(top < 0, -1.0, 1.0).to(u.dtype)  # a decomposition is only unique but for signs
    right = (s * sign[0]).unsqueeze(-1) * vh
    return u * sign * s, right if weight is None else right / weight


def _solved(left: Tensor, matrix: Tensor) -> Tensor:
    """The right factor with the least squared error for a given left one."""
    return _ridge(left.t() @ left, left.t() @ matrix)


def _solved_left(right: Tensor, matrix: Tensor, columns: Tensor | None) -> Tensor:
    """The left factor with the least (weighted) squared error for a given right one."""
    weighted = right if columns is None else right * columns.to(right.dtype)
    return _ridge(weighted @ right.t(), weighted @ matrix.t()).t()


def _ridge(gram: Tensor, target: Tensor) -> Tensor:
    """Solve gram y = target; a factor that lost a direction makes gram singular, hence the little on top."""
    ridge = gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny) * 1e-6
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), target)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
