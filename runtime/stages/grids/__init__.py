"""Grids: the representable values of a scalar quantiser, as codes and as numbers in units of the scale."""

from __future__ import annotations

from .base import Grid
from .integer import IntegerGrid
from .levels import LevelGrid
from .minifloat import FloatGrid
from .names import GRIDS, INTEGER_GRIDS, parse_grid

__all__ = ["GRIDS", "INTEGER_GRIDS", "FloatGrid", "Grid", "IntegerGrid", "LevelGrid", "parse_grid"]
