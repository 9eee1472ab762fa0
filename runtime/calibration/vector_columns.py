"""Columns that become vectors of a codebook together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..stage import Fields
from ..stages import Codebook
from .columns import Columns, restored, transposed


class VectorColumns(Columns):
    """Vector quantisation (GPTVQ 2402.15319): so many neighbours at a time, under codebooks that are given.

    `factor` is U of the inverse Hessian, `[b, in, in]`. The error e of a vector costs |e U_v^-1|^2 once the
    columns to come have made up for it, U_v being U at its columns; the search counts the diagonal of that.
    """

    def __init__(self, stage: Codebook, like: Tensor, fields: Fields, factor: Tensor) -> None:
        self._stage, self._fields, self._factor = stage, fields, factor
        self._leading = tuple(like.shape[:-2])
        *_, out, self._columns = like.shape
        self.width = stage.in_group_size
        self.shared = self.width
        spread = stage.spread(fields, self._columns, like)
        self._scale = transposed(spread.expand(like.shape))
        vectors = -(-self._columns // self.width)
        integers = torch.uint8 if stage.nbits_per_codebook <= 8 else torch.int32
        shape = (len(self._scale), vectors * stage.num_codebooks, out)
        self._codes = torch.zeros(shape, dtype=integers, device=like.device)

    def open(self, start: int, weights: Tensor) -> None:
        return

    def round(self, at: int, weights: Tensor) -> Tensor:
        count, wide, out = weights.shape
        scale = self._scale[:, at : at + wide]
        scaled = torch.where(scale == 0, 0.0, weights / torch.where(scale == 0, 1.0, scale))
        vectors = torch.nn.functional.pad(scaled.transpose(1, 2), (0, self.width - wide))
        weight = self._weight(at, wide, scale)
        codes, found = self._stage.encode_with(
            vectors.reshape(-1, self.width),
            self._fields,
            None if weight is None else weight.to(vectors.dtype),
        )
        books = self._stage.num_codebooks
        first = at // self.width * books
        placed = codes.reshape(count, out, books).transpose(1, 2)
        self._codes[:, first : first + books] = placed.to(self._codes.dtype)
        return found.reshape(count, out, self.width)[..., :wide].transpose(1, 2) * scale

    def codes(self) -> Tensor:
        """Codes `[..., out, vectors * num_codebooks]` of all columns."""
        return restored(self._codes, self._leading)

    def _weight(self, at: int, wide: int, scale: Tensor) -> Tensor | None:
        """What the error of each number counts, `[rows, width]`; None where those of a vector count the same.

        Zeros that fill up the last vector count nothing.
        """
        part = self._factor[:, at : at + wide, at : at + wide]
        identity = torch.eye(wide, dtype=part.dtype, device=part.device)
        diagonal = torch.linalg.solve_triangular(part, identity, upper=True).square().sum(2)
        cost = diagonal.unsqueeze(1) * scale.transpose(1, 2).square()
        if bool((cost == cost[..., :1]).all()):
            return None
        return torch.nn.functional.pad(cost, (0, self.width - wide)).reshape(-1, self.width)
