"""The contract of a latent: a weight as a function of what is trained in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

from torch import Tensor


class Latent(ABC):
    """A reparameterisation: training holds theta, and the model reads w(theta); a frozen dataclass in a file.

    It is a view for training only: packed and reference forms hold w. Elementwise, same shape and dtype.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    kind: str

    def __str__(self) -> str:
        """Kind and options, as stages are written: `power(alpha=2)`."""
        shown = (f for f in fields(self) if f.name != "kind")  # type: ignore[arg-type]
        return f"{self.kind}({', '.join(f'{f.name}={getattr(self, f.name):g}' for f in shown)})"

    @abstractmethod
    def start(self, weight: Tensor) -> Tensor:
        """The theta that gives a weight, so that a model is unchanged when it is compiled."""

    @abstractmethod
    def weight(self, theta: Tensor) -> Tensor:
        """The weight, differentiable in theta."""
