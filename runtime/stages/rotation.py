"""What rotations of the last dimension share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..gaussian import Source
from ..stage import Fields, Sized, Stage
from .precision import cast, full_precision, wide


class Rotation(Stage):
    """An orthogonal map of the last dimension, the same for every vector along it; nothing is stored."""

    tags: ClassVar[frozenset[str]] = frozenset({"orthogonal", "lossless"})

    @abstractmethod
    def turn(self, x: Tensor, back: bool) -> Tensor:
        """`x` in the precision of the computation, rotated, or rotated back."""

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return self._turned(x, back=False), {}

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        return self._turned(carry, back=True)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        return x, {}

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Nothing changes for Gaussian numbers; survivors of a sparse stage are mixed into something else."""
        return None if source.keeps else (source, 0.0)

    def _turned(self, x: Tensor, back: bool) -> Tensor:
        self.check(tuple(x.shape))
        with full_precision(x.device):
            return cast(self.turn(cast(x, wide(x.dtype)), back).reshape(x.shape), x.dtype)


def placed(matrix: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A float64 matrix as the computation needs it, fit to be kept also when made in inference."""
    with torch.inference_mode(False):
        return matrix.to(dtype=dtype, device=device, copy=True)
