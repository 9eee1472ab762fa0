"""Columns of a matrix becoming codes one after the other, while those to come still change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..stage import Fields
from ..stages import Quantize
from ..stages.quantize import Steps


class Columns(ABC):
    """What becomes of the columns of a weight `[..., out, in]`, a few at a time.

    Columns are handed over as `[b, k, out]`: `k` columns, each one contiguous, of `b` matrices. An object
    serves one weight and is then used up.
    """

    width: int = 1
    """Columns that become a code together."""

    shared: int
    """Columns that share what `open` decides; `in` when all do."""

    @abstractmethod
    def open(self, start: int, weights: Tensor) -> None:
        """Decide what columns from `start` on share, `[b, shared or fewer, out]`, from what they are now."""

    @abstractmethod
    def round(self, at: int, weights: Tensor) -> Tensor:
        """What columns from `at` on, `[b, width or fewer, out]`, decode to. Each is asked for once."""


class GridColumns(Columns):
    """Scalar quantisation. Scales of a group are measured when its first column is reached, or are given.

    `steps`: for each number of the weight `[..., out, in]`; None measures as it goes along. `mask`: places
    that stay zero where it is false, and have no code.
    """

    def __init__(
        self,
        stage: Quantize,
        like: Tensor,
        dtype: torch.dtype,
        steps: Steps | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self._stage, self._dtype = stage, dtype
        self._leading = tuple(like.shape[:-2])
        *_, self._out, columns = like.shape
        group = stage.group_size if stage.block_structure is None else stage.block_structure[1]
        self.shared = min(group or columns, columns) if steps is None else columns
        self._codes = transposed(torch.zeros(like.shape, dtype=torch.uint8, device=like.device))
        self._given = None if steps is None else _by_columns(steps, like, mask)
        self._mask = None if mask is None else transposed(mask)
        self._now = Steps(like.new_ones(1), None)
        self._fields: list[Fields] = []

    def open(self, start: int, weights: Tensor) -> None:
        if self._given is not None:
            return
        matrix = restored(weights, self._leading)
        _, fields = self._stage.encode(matrix.to(self._dtype).contiguous())
        self._fields.append(fields)
        steps = self._stage.steps(fields, tuple(matrix.shape))
        self._now = _each(steps, lambda s: s.expand(matrix.shape)[..., :1].reshape(-1, 1))

    def round(self, at: int, weights: Tensor) -> Tensor:
        steps = self._now
        if self._given is not None:
            steps = _each(self._given, lambda s: s[:, at].reshape(-1, 1))
        codes = self._stage.encode_with(weights.reshape(-1, 1), steps)
        values = self._stage.decode_with(codes, steps).reshape(weights.shape).to(weights.dtype)
        self._codes[:, at] = codes.reshape(weights.shape)[:, 0]
        return values if self._mask is None else values * self._mask[:, at : at + 1]

    def codes(self) -> Tensor:
        """Codes `[..., out, in]` of all columns; 0 where the mask is false."""
        return restored(self._codes, self._leading)

    def fields(self) -> Fields:
        """The fields of the scales that were measured on the way."""
        first, *others = self._fields
        if not others:
            return first
        return {name: torch.cat([fields[name] for fields in self._fields], -1) for name in first}


def transposed(matrix: Tensor) -> Tensor:
    """A copy of `[..., out, in]` as `[b, in, out]`, contiguous; of a single row too, which is overwritten."""
    columns = matrix.reshape(-1, *matrix.shape[-2:]).transpose(1, 2)
    return columns.clone(memory_format=torch.contiguous_format)


def restored(columns: Tensor, leading: tuple[int, ...]) -> Tensor:
    """`[b, in, out]` as `[..., out, in]`, contiguous."""
    return columns.transpose(1, 2).reshape(*leading, columns.shape[2], columns.shape[1]).contiguous()


def _by_columns(steps: Steps, like: Tensor, mask: Tensor | None) -> Steps:
    """Steps with a column for each column of the weight; a distance of 1 where the mask is false."""
    scale = steps.scale if mask is None else torch.where(mask, steps.scale, 1)
    return _each(Steps(scale, steps.zero), lambda s: transposed(s.expand(like.shape)))


def _each(steps: Steps, change: Callable[[Tensor], Tensor]) -> Steps:
    return Steps(change(steps.scale), None if steps.zero is None else change(steps.zero))
