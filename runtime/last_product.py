"""The product with a factor that several weights share, kept for the next that reads the same input."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, final

import torch
from torch import Tensor


@final
class LastProduct:
    """What a factor in common made of the input it was multiplied with last, for as long as that input lives.

    The weights of a group hold one together; copies of the group have a new one together.
    """

    def __init__(self) -> None:
        self._kept: tuple[weakref.ref[Tensor], Hashable, Tensor] | None = None

    def of(self, x: Tensor, factor: tuple[Tensor, ...], make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(x)`, or what it gave before for this very tensor and the same fields of the factor.

        Inputs that gradients pass are multiplied each time, for their graph would be kept with them, and so
        are inference tensors, which do not tell when they are written to.
        """
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if differentiated or x.is_inference() or torch.is_inference_mode_enabled():
            return make(x)
        autocast = torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type)
        key = (torch.is_grad_enabled(), autocast, stamp(x), *(stamp(field) for field in factor))
        kept = self._kept
        if kept is not None and kept[0]() is x and kept[1] == key:
            return kept[2]
        result = make(x)
        self._kept = (weakref.ref(x, self._forget), key, result)
        return result

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        if self._kept is not None and self._kept[0] is gone:
            self._kept = None

    def __reduce__(self) -> tuple[Any, ...]:
        return LastProduct, ()


def stamp(tensor: Tensor) -> tuple[int, int]:
    """What changes when a field is replaced or written to; inference tensors do not count what is written."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
