"""The levels that a tensor was rounded to, for estimators that need more of a grid than its cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..representation import Representation
from ..stages.codebook import Codebook
from ..stages.quantize import Quantize
from ..view import View
from .base import bare


@dataclass(frozen=True)
class Levels:
    """Levels v of a grid or a scalar codebook, which stand for (v - zero) * scale at every number.

    `scale` and `zero` (None where there is none) broadcast to what the stage was handed.
    """

    values: Tensor  # [k], ascending
    scale: Tensor
    zero: Tensor | None

    def restored(self, values: Tensor) -> Tensor:
        """What numbers in units of levels stand for."""
        return (values if self.zero is None else values - self.zero) * self.scale

    def scaled(self, numbers: Tensor) -> Tensor:
        """Numbers in units of levels; those without a scale (0) are at zero."""
        scaled = numbers / torch.where(self.scale == 0, torch.inf, self.scale)
        return scaled if self.zero is None else scaled + self.zero


def refusal(representation: Representation) -> str:
    """Why a representation gives no levels that estimators can see; '' where it does."""
    *before, last = bare(representation).core.stages or (None,)
    if isinstance(last, Codebook):
        if last.in_group_size != 1 or last.num_codebooks != 1 or last.rows_per_codebook is not None:
            return f"needs one table of single numbers, and {representation} has none"
    elif not isinstance(last, Quantize):
        return f"needs a grid or a table of single numbers, and {representation} has none"
    if any(stage is not None and "orthogonal" in stage.tags for stage in before):
        return f"cannot see the levels of {representation} behind a rotation, which has to come first"
    return ""


def levels_of(view: View) -> Levels | None:
    """The levels of the last stage; None where it has none."""
    if not view.steps:
        return None
    stage, fields = view.steps[-1]
    wide = torch.promote_types(view.latent.dtype, torch.float32)
    like = view.latent.new_empty(0, dtype=wide)
    if isinstance(stage, Quantize):
        steps = stage.steps(fields, tuple(view.handed.shape))
        zero = None if steps.zero is None else steps.zero.to(wide)
        return Levels(like.new_tensor(stage.levels.levels), steps.scale.to(wide), zero)
    if isinstance(stage, Codebook) and stage.in_group_size == 1 and view.latent.numel():
        table = stage.tables(fields, like)[0].flatten().sort().values
        return Levels(table, stage.spread(fields, view.handed.shape[-1], like), None)
    return None
