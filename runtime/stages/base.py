"""The contract of a stage, under its old address."""

from ..stage import CARRY, Cell, Fields, HandsOn, Sized, Stage

__all__ = ["CARRY", "Cell", "Fields", "HandsOn", "Sized", "Stage"]
