"""Stochastic: training rounds up or down at random, so that it is right on average."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..representation import Representation
from ..stage import Stage
from ..stages.quantize import Quantize
from ..view import View
from .base import Estimator


@dataclass(frozen=True)
class Stochastic(Estimator):
    """R(x) is u with probability (x - l) / (u - l), else l, for the two levels l <= x <= u around x.

    E R(x) = x inside the grid; beyond its ends numbers are clipped. The gradient passes everywhere:
    dL/dx = dL/dR(x). In eval() and in what is stored numbers go to the nearest level. Rounding of scales is
    as ever. (Gupta et al., 1502.02551.)
    """

    kind: Literal["stochastic"] = "stochastic"

    masks: ClassVar[bool] = False

    def check(self, representation: Representation) -> None:
        if representation.stages and self.trained(representation) == representation:
            raise ValueError(
                f"'stochastic' needs a grid to round to, and {representation} has none; use 'ste'"
            )

    def trained(self, representation: Representation) -> Representation:
        return Representation(tuple(_rounding(stage) for stage in representation.stages))

    def mask(self, view: View) -> Tensor | None:
        return None


def _rounding(stage: Stage) -> Stage:
    """A stage that rounds at random, or with chains inside that do."""
    if isinstance(stage, Quantize):
        return replace(stage, rounding="stochastic")
    changed: dict[str, Any] = {}
    for field in fields(stage):  # type: ignore[arg-type]
        value = getattr(stage, field.name)
        if isinstance(value, Representation):
            changed[field.name] = Representation(tuple(map(_rounding, value.stages)))
        elif isinstance(value, tuple) and value and all(isinstance(inner, Representation) for inner in value):
            changed[field.name] = tuple(Representation(tuple(map(_rounding, v.stages))) for v in value)
    return replace(stage, **changed) if changed else stage  # type: ignore[type-var]
