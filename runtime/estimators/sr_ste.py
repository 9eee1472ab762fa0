"""Sparse-refined straight-through: pruned weights learn on, and decay (Zhou et al. 2102.04010, Eq. 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..representation import Representation
from ..view import View
from .base import Estimator


@dataclass(frozen=True)
class SparseRefined(Estimator):
    """dL/dw = dL/dR(w) + decay * (1 - M) * w, with M the mask of what a sparse stage keeps.

    Meant for weights: whatever the loss, what is pruned goes towards zero, and so the mask settles. The decay
    is added once for each backward pass through the projection, and not scaled with the loss: accumulation
    over k batches adds it k times.

    `decay` is the factor of pruned weights, 2e-4 in the paper.
    """

    decay: float = 2e-4
    kind: Literal["sr_ste"] = "sr_ste"

    masks: ClassVar[bool] = False
    pulls: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"decay must be a number that is not negative, got {self.decay}")

    def check(self, representation: Representation) -> None:
        if representation.stages and not any("sparse" in stage.tags for stage in representation.unwrapped):
            raise ValueError(f"'sr_ste' needs a sparse stage, and {representation} has none; use 'ste'")

    def mask(self, view: View) -> Tensor | None:
        return None

    def pull(self, view: View) -> Tensor | None:
        return None if view.kept is None else torch.where(view.kept, 0.0, view.latent * self.decay)
