"""The input of an operation as rows of what its weight, read as a matrix, is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class InputRows:
    """How inputs become rows `[*leading, rows, in]`, for a weight that is a matrix `[*leading, out, in]`.

    Of a convolution `kernel`, `stride` and `padding` have one number for each dimension in space.
    """

    leading: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()

    def of(self, x: Tensor) -> Tensor:
        """The rows of an input."""
        if self.kernel:
            return self._unfolded(x)
        return _leading(x, self.leading) if self.leading else x.reshape(-1, x.shape[-1])

    def _unfolded(self, x: Tensor) -> Tensor:
        rank = len(self.kernel)
        x = x if x.dim() == 2 + rank else x.unsqueeze(0)
        x = F.pad(x, [size for each in reversed(self.padding) for size in (each, each)])
        for dimension, (size, step) in enumerate(zip(self.kernel, self.stride, strict=True)):
            x = x.unfold(2 + dimension, size, step)
        taken = x.permute(0, *range(2, 2 + rank), 1, *range(2 + rank, x.dim()))
        return taken.flatten(1 + rank).flatten(0, rank)


def _leading(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """`[*lead, rows, in]` of an input `[..., in]` that is multiplied with matrices `[*lead, in, out]`."""
    rows = x if x.dim() > 1 else x.unsqueeze(0)
    full = torch.broadcast_shapes(rows.shape[:-2], lead)  # type: ignore[no-untyped-call]
    rows = rows.expand(*full, *rows.shape[-2:])
    own = [len(full) - len(lead) + i for i, size in enumerate(lead) if size > 1]
    rest = [dimension for dimension in range(rows.dim()) if dimension not in own]
    return rows.permute(*own, *rest).reshape(*lead, -1, x.shape[-1])
