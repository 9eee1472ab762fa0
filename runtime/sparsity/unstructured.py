"""Unstructured sparsity: any numbers, of the whole tensor or of every row."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

from ..gaussian import Source
from .pattern import Fraction, Pools
from .survival import KeepAbove


@dataclass(frozen=True)
class Unstructured(Fraction):
    """The largest magnitudes of a tensor, handed on as `[k]`, or of each row `[..., n]`, as `[..., k]`."""

    by_row: bool

    def pools(self, shape: tuple[int, ...]) -> Pools:
        pooled = shape if self.by_row else (prod(shape),)
        return Pools(shape, pooled, self.kept(pooled[-1]))

    def scores(self, magnitude: Tensor) -> Tensor:
        return magnitude

    def carry_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.pools(shape).index

    def spread(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        return mask

    def tensor_shape(self, mask: tuple[int, ...]) -> tuple[int, ...] | None:
        return mask

    def survival(self, source: Source) -> KeepAbove:
        """A threshold, in the limit of a large tensor or long rows."""
        return KeepAbove(source.quantile(self.sparsity))
