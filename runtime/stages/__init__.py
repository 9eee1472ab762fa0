"""The stages of the representation language, one file each. A new kind is a class in a file, a line here."""

from __future__ import annotations

from ..stage import Stage
from .hadamard import Hadamard
from .product import Product
from .quantize import Quantize
from .sparsify import Sparsify
from .split import Split
from .sum import Sum

STAGES: tuple[type[Stage], ...] = (Hadamard, Quantize, Sparsify, Sum, Product, Split)

__all__ = ["STAGES", "Hadamard", "Product", "Quantize", "Sparsify", "Split", "Stage", "Sum"]
