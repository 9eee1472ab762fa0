"""Columns of which some weights become zero, chosen shortly before their turn."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sparsity import Groups, Unstructured
from ..sparsity.select import largest
from ..stages import Sparsify
from .columns import Columns, restored, transposed

_BLOCK = 128  # columns whose weights compete with each other where a pattern is unstructured


class PrunedColumns(Columns):
    """Zeros where a weight costs least: w^2 / U_jj^2, the error once the columns to come have made up for it.

    U_jj^2 is an element of the inverse of the Hessian of the columns to come (SparseGPT 2301.00774, adaptive
    mask selection). n:m groups are decided one by one, unstructured zeros in blocks of 128 columns, each with
    its share of them, so that the count is exact. Other patterns are decided at once, by w^2 / [H^-1]_jj.

    `factor` is U `[b, in, in]`; an error of a row counts by `rows` `[..., out, 1]`.
    """

    def __init__(self, stage: Sparsify, numbers: Tensor, factor: Tensor, rows: Tensor | None) -> None:
        self._stage, self._leading = stage, tuple(numbers.shape[:-2])
        self._shape = tuple(numbers.shape)
        self._rows = None if rows is None else rows.abs().to(numbers.dtype)
        self._alone = factor.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # U_jj as columns have it, [b, in, 1]
        self._masks: list[Tensor] = []
        self._weights = torch.zeros_like(transposed(numbers))
        self._mask = torch.zeros(self._weights.shape, dtype=torch.bool, device=numbers.device)
        columns, pattern = self._shape[-1], stage.pattern
        self.shared = columns
        if isinstance(pattern, Groups):
            self.shared = pattern.m
        elif isinstance(pattern, Unstructured):
            self.shared = min(_BLOCK, columns)
        else:  # of H^-1 = U^T U
            self._alone = factor.square().sum(1).sqrt().unsqueeze(-1)

    def open(self, start: int, weights: Tensor) -> None:
        stop = start + weights.shape[1]
        saliency = restored(weights.abs() / self._alone[:, start:stop], self._leading)
        if self._rows is not None:
            saliency = saliency * self._rows
        units = self._chosen(saliency, start, stop)
        self._masks.append(units)
        kept = self._stage.pattern.spread(units, tuple(saliency.shape))
        self._mask[:, start:stop] = transposed(kept)

    def round(self, at: int, weights: Tensor) -> Tensor:
        kept = weights * self._mask[:, at : at + 1]
        self._weights[:, at] = kept[:, 0]
        return kept

    def weights(self) -> Tensor:
        """The weights that stayed, made up for the others, `[..., out, in]`."""
        return restored(self._weights, self._leading)

    def units(self) -> Tensor:
        """One bool per unit of the pattern, as `Sparsify.encode_with` takes them."""
        return torch.cat(self._masks, -1) if len(self._masks) > 1 else self._masks[0]

    def kept(self) -> Tensor:
        """Which weights stay, `[..., out, in]`."""
        return restored(self._mask, self._leading)

    def _chosen(self, saliency: Tensor, start: int, stop: int) -> Tensor:
        pattern = self._stage.pattern
        if not isinstance(pattern, Unstructured):
            return self._stage.choose(saliency)
        pools = pattern.pools(self._shape)
        before, after = (pools.kept * column // self._shape[-1] for column in (start, stop))
        pooled = saliency if pattern.by_row else saliency.reshape(1, -1)
        return largest(pooled, after - before).reshape(saliency.shape)
