"""Straight-through: the gradient passes as if nothing had been projected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..view import View
from .base import Estimator


@dataclass(frozen=True)
class StraightThrough(Estimator):
    """dL/dx = dL/dR(x), for every entry."""

    kind: Literal["ste"] = "ste"

    masks: ClassVar[bool] = False

    def mask(self, view: View) -> Tensor | None:
        return None
