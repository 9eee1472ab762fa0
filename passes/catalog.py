"""The passes that a spec can list, and those that are added for what they establish."""

from __future__ import annotations

from typing import Any

from .base import Fact, Pass, PipelineError
from .calibrate import Calibrate
from .calibrate_directions import CalibrateDirections
from .calibrate_inputs import CalibrateInputs
from .correct_bias import CorrectBias
from .dilate import Dilate
from .equalize import Equalize
from .fold_norms import FoldNorms
from .fold_rotations import FoldRotations
from .give_batches import GiveBatches
from .raise_norms import RaiseNorms
from .record_ranges import RecordRanges

PASSES: tuple[type[Pass], ...] = (
    FoldNorms,
    FoldRotations,
    Equalize,
    Dilate,
    CalibrateInputs,
    CalibrateDirections,
    Calibrate,
    CorrectBias,
)
"""By their `kind` in a spec."""

_ESTABLISHING: tuple[type[Pass], ...] = (RaiseNorms, FoldNorms, RecordRanges, GiveBatches)


def kind_of(declared: type[Any]) -> str:
    """What a spec calls a pass, a stage or an estimator."""
    return str(declared.kind)


def establishing(fact: Fact) -> type[Pass]:
    """The pass that is added where a listed one requires a fact that no other establishes."""
    for each in _ESTABLISHING:
        if fact in each.establishes:
            return each
    raise PipelineError(f"nothing establishes '{fact}'")
