"""The stages of the representation language, one file each. A new kind is a class in a file, a line here."""

from __future__ import annotations

from .base import Stage
from .hadamard import Hadamard
from .quantize import Quantize
from .sparsify import Sparsify

STAGES: tuple[type[Stage], ...] = (Hadamard, Quantize, Sparsify)

__all__ = ["STAGES", "Hadamard", "Quantize", "Sparsify", "Stage"]
