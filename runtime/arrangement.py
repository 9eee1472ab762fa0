"""How the weight of an operation is read as a matrix: rows give outputs, the last dimension is summed over.

Stages work along the last dimension: groups, rotations and patterns of zeros belong where a product sums. A
convolution sums over input channels and kernel positions, `x @ W` over the first dimension of W, an expert
layer over one dimension of three. An arrangement moves that to the end, and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Arrangement:
    """First viewed with the sizes `view` (() for its own), then permuted by `order` (() for none), and the
    last `columns` dimensions flattened into one. The default changes nothing."""

    view: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    columns: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether a weight is read as it is."""
        return self == PLAIN

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight `[..., out, in]`; a view where strides allow it."""
        if self.is_plain:
            return weight
        viewed = weight.reshape(self.view) if self.view else weight
        permuted = viewed.permute(self.order) if self.order else viewed
        return permuted.flatten(permuted.dim() - self.columns) if self.columns > 1 else permuted

    def restore(self, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse of `matrix` for a weight that had this shape."""
        if self.is_plain:
            return matrix
        permuted = matrix.reshape(self._permuted(shape))
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return (permuted.permute(inverse) if self.order else permuted).reshape(shape)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of `matrix` for a weight of this shape."""
        permuted = self._permuted(shape)
        cut = len(permuted) - self.columns
        return (*permuted[:cut], prod(permuted[cut:])) if self.columns > 1 else permuted

    def _permuted(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        sizes = self.view or tuple(shape)
        return tuple(sizes[i] for i in self.order) if self.order else sizes


PLAIN = Arrangement()


def summed_over(dims: int, contracted: tuple[int, ...]) -> Arrangement:
    """The arrangement of a weight with `dims` dimensions of which `contracted` are summed over."""
    inner = tuple(d % dims for d in contracted)
    order = (*(d for d in range(dims) if d not in inner), *inner)
    return Arrangement((), () if order == tuple(range(dims)) else order, len(inner))
