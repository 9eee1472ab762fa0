"""The contract of an estimator: how a gradient passes a projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..representation import Representation
from ..view import View


class Estimator(ABC):
    """How a tensor is projected while it is trained, and what its gradient is then; a frozen dataclass in a file.

    dL/dx = P^T (M * P dL/dR(x)), with P the leading rotation and M the estimator's mask. Estimators in a list
    multiply their masks, and change the forward pass one after the other. In eval() nothing is changed.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    kind: str

    masks: ClassVar[bool] = True
    """Whether `mask` may give anything."""

    random: ClassVar[bool] = False
    """Whether the forward pass in training draws random numbers."""

    def check(self, representation: Representation) -> None:
        """Raise `ValueError` when this estimator means nothing for a representation."""
        return

    def trained(self, representation: Representation) -> Representation:
        """What is projected to in training, in the place of the declared representation."""
        return representation

    def replaced(self, view: View, generator: torch.Generator) -> Tensor | None:
        """What training sees in the place of `view.projected`, in the same domain; None: just that.

        All randomness comes from `generator`, on the tensor's device: the backward pass may repeat it.
        """
        return None

    @abstractmethod
    def mask(self, view: View) -> Tensor | None:
        """What the gradient is multiplied by: bool, or numbers of a float dtype (on CPU comparing into a
        float tensor is several times faster); None when it passes everywhere. `view.projected` is what
        training saw."""
