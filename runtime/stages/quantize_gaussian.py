"""The error that `quantize` makes on Gaussian numbers, by integrals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..gaussian import Source, grid_error, stochastic_error
from ..gaussian_groups import group_error
from .scales import Floating, PowerOfTwo

if TYPE_CHECKING:
    from .quantize import Quantize

_EXACT_TO = {None: 8, "float32": 8, "float16": 4}  # bits up to which rounding scales costs less than 1e-5


def gaussian(stage: Quantize, source: Source) -> tuple[Source, float] | None:
    """Integral over the cells: for scales of rows and tensors in the limit of many numbers.

    For groups and blocks over the distribution of their largest magnitude (at sigma = 1 for powers of
    two), where the scale depends on that alone and rounding it to its dtype costs less than 1e-5 of the
    error: stored as float32, as float16 for up to 4 bits, or a power of two anyway.
    None otherwise.
    """
    if not stage.symmetric or stage.step is not None:
        return None
    levels = np.array(stage.levels.levels)
    if stage.group_numbers is None:
        scale = stage._rule.limit(stage._setting, source) if _stored_precisely(stage, 8) else None
        error = stochastic_error if stage.rounding else grid_error
        return None if scale is None else (source, error(levels, scale, source))
    share = None if source.keeps else gaussian_at(stage, 1.0)
    return None if share is None else (source, share)


def gaussian_at(stage: Quantize, deviation: float) -> float | None:
    """`Quantize.gaussian_at`."""
    measured = stage.symmetric and stage.step is None
    rule = stage._rule.of_maximum(stage._setting) if measured else None
    exact = isinstance(stage.storage, PowerOfTwo) and stage._rule.power_of_two
    if rule is None or stage.group_numbers is None or not (exact or _stored_precisely(stage, stage.num_bits)):
        return None
    stochastic = stage.rounding is not None
    return group_error(stage.levels.levels, stage.group_numbers, rule, deviation, stochastic=stochastic)


def _stored_precisely(stage: Quantize, num_bits: int) -> bool:
    """Whether the dtype of the scales makes no difference worth counting for codes of these bits."""
    if not isinstance(stage.storage, Floating):
        return False
    if stage.group_numbers is None:
        return stage.scale_dtype in (None, "float32", "float16", "bfloat16")
    return num_bits <= _EXACT_TO.get(stage.scale_dtype, 0)
