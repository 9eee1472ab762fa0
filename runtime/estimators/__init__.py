"""How gradients pass projections, one file each. A new estimator is a class in a file and a line here."""

from __future__ import annotations

from .banded import Banded
from .base import Estimator
from .straight_through import StraightThrough
from .trust import Trust

ESTIMATORS: tuple[type[Estimator], ...] = (StraightThrough, Trust, Banded)

__all__ = ["ESTIMATORS", "Banded", "Estimator", "StraightThrough", "Trust"]
