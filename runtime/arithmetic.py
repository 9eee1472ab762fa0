"""Python's operators on what stands for a tensor and is none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .after_import import after_import

after_import("torch._dynamo.variables.builtin", f"{__package__}.from_the_left")


class Arithmetic:
    """Products of matrices as torch's function, which asks the object what it makes of them; all others of
    the tensor that it stands for."""

    @abstractmethod
    def decode(self) -> Tensor:
        """The tensor."""

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(cast(Tensor, self), other)

    def __rmatmul__(self, other: Any) -> Any:
        return torch.matmul(other, cast(Tensor, self))

    def __add__(self, other: Any) -> Any:
        return self.decode() + other

    def __mul__(self, other: Any) -> Any:
        return self.decode() * other

    def __sub__(self, other: Any) -> Any:
        return self.decode() - other

    def __truediv__(self, other: Any) -> Any:
        return self.decode() / other

    def __neg__(self) -> Tensor:
        return -self.decode()

    __radd__, __rmul__ = __add__, __mul__


def in_order(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function and its arguments; a product that takes its factors in reverse as one that does not."""
    return (torch.matmul, args[::-1]) if func is Tensor.__rmatmul__ else (func, args)
