"""Round to nearest: the code that needs no calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..representation import Representation
from ..stage import Fields
from .fitter import Fitter
from .leading import Leading


@dataclass(frozen=True)
class RoundToNearest(Fitter):
    """What `Representation.encode` makes of a weight, whatever its inputs.

    `weighted` counts squared errors by the mean square of the input channel, where a stage chooses: which
    numbers stay (Wanda, 2306.11695, is `sparsify` with `scores: given`), which scale, which codebook.
    """

    weighted: bool = False
    kind: Literal["round_to_nearest"] = "round_to_nearest"

    def rest(self, leading: Leading) -> tuple[Tensor, Sequence[Fields]]:
        importance = None
        if self.weighted:
            diagonal = leading.inputs.hessian.diagonal(dim1=-2, dim2=-1)
            shape = (*leading.carry.shape[:-2], 1, -1) if len(diagonal) > 1 else (1, -1)
            least = diagonal.amax(-1, keepdim=True) * 1e-12  # importance is positive
            importance = diagonal.maximum(least).clamp_min(1e-300).reshape(shape).to(leading.carry)
            importance = importance.expand(leading.carry.shape)
        code = Representation(leading.rest).encode(leading.carry, importance)
        return code.carry, code.fields
