"""Row and column sparsity: whole lines of a matrix."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Source
from .pattern import Fraction, Pools
from .survival import KeepShare


@dataclass(frozen=True)
class Lines(Fraction):
    """Rows or columns of largest L2 norm. Leading dimensions count as rows: `[..., n]` is `[rows, n]`."""

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise RequestError(
                f"row and column sparsity need a matrix, and this tensor has {len(shape)} dimensions",
                advice="use sparsity_structure: unstructured, or leave this tensor out with `ignore`",
            )

    def survival(self, source: Source) -> KeepShare:
        """Long lines of Gaussian numbers all have the same energy, so what is lost is the fraction itself."""
        return KeepShare(1 - self.sparsity)

    @abstractmethod
    def pools(self, shape: tuple[int, ...]) -> Pools: ...


@dataclass(frozen=True)
class Rows(Lines):
    """Whole rows, handed on as `[k, n]`."""

    def pools(self, shape: tuple[int, ...]) -> Pools:
        count = prod(shape[:-1])
        return Pools(shape[:-1], (count,), self.kept(count))

    def scores(self, magnitude: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(magnitude, dim=-1, dtype=torch.float64)
        return norms

    def carry_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.pools(shape).kept, shape[-1])

    def spread(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        return mask.unsqueeze(-1).expand(shape)

    def take(self, x: Tensor, places: Tensor) -> Tensor:
        return x.reshape(prod(x.shape[:-1]), x.shape[-1]).index_select(0, places)

    def put(self, carry: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        rows = torch.zeros(prod(shape[:-1]), shape[-1], dtype=carry.dtype, device=carry.device)
        return rows.index_copy_(0, places, carry).reshape(shape)


@dataclass(frozen=True)
class Columns(Lines):
    """Whole columns, handed on as `[..., k]`."""

    def pools(self, shape: tuple[int, ...]) -> Pools:
        return Pools(shape[-1:], shape[-1:], self.kept(shape[-1]))

    def scores(self, magnitude: Tensor) -> Tensor:
        rows = magnitude.reshape(prod(magnitude.shape[:-1]), magnitude.shape[-1])
        norms: Tensor = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float64)
        return norms

    def carry_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.pools(shape).kept)

    def spread(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        return mask.expand(shape)

    def take(self, x: Tensor, places: Tensor) -> Tensor:
        return x.index_select(-1, places)

    def put(self, carry: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        zeros = torch.zeros(shape, dtype=carry.dtype, device=carry.device)
        return zeros.index_copy_(-1, places, carry)
