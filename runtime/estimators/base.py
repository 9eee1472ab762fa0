"""The contract of an estimator: how a gradient passes a projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..representation import Representation
from ..view import View


class Estimator(ABC):
    """How a tensor is projected in training, and what its gradient is then; a frozen dataclass in a file.

    dL/dx = P^T (M * P dL/dR(x) + D), with P the leading rotation, M the estimator's mask, and D its pull,
    nothing as a rule. Estimators in a list multiply their masks, add their pulls, and change the forward pass
    one after the other. In eval() nothing is changed.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    kind: str

    masks: ClassVar[bool] = True
    """Whether `mask` may give anything."""

    pulls: ClassVar[bool] = False
    """Whether `pull` may give anything."""

    apart: ClassVar[bool] = False
    """Whether it leaves projection, mask and pull alone, so that any other estimator may stand beside it."""

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

    def pull(self, view: View) -> Tensor | None:
        """What is added to the gradient behind the mask, in the rotated domain, whatever the loss is; None:
        nothing. It is added once for each backward pass through the projection."""
        return None


def bare(representation: Representation) -> Representation:
    """A representation without what only stores other stages in another way: the same projection, for a view
    that has all stages in sight.

    Raises:
        ValueError: a rotation would come to light that the representation does not begin with.
    """
    if representation.unwrapped == representation.stages:
        return representation
    found = Representation(representation.unwrapped)
    if len(found.rotation.stages) != len(representation.rotation.stages):
        raise ValueError(
            f"estimators cannot see the rotation inside of {representation}; put it in front of that stage"
        )
    return found
