"""The contract of an estimator: how a gradient passes a projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from ..representation import Representation
from ..view import View


class Estimator(ABC):
    """Which entries of a latent tensor receive the gradient of its projection; a frozen dataclass in a file.

    Estimators in a list multiply their masks.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    kind: str

    def check(self, representation: Representation) -> None:
        """Raise `ValueError` when this estimator means nothing for a representation."""
        return

    @abstractmethod
    def mask(self, view: View) -> Tensor | None:
        """What the gradient is multiplied by: bool, or zeros and ones of a float dtype (on CPU comparing
        into a float tensor is several times faster); None when it passes everywhere."""
