"""The stages of the representation language, one file each. A new kind is a class in a file, a line here."""

from __future__ import annotations

from ..stage import Stage
from .codebook import Codebook
from .entropy import Entropy
from .hadamard import Hadamard
from .ones import Ones
from .palette import Palette
from .product import Product
from .quantize import Quantize
from .random_rotation import RandomRotation
from .scale import Scale
from .sparsify import Sparsify
from .split import Split
from .sum import Sum
from .trellis import Trellis

STAGES: tuple[type[Stage], ...] = (
    Hadamard,
    RandomRotation,
    Scale,
    Sparsify,
    Quantize,
    Codebook,
    Trellis,
    Palette,
    Ones,
    Sum,
    Product,
    Split,
    Entropy,
)

__all__ = [
    "STAGES",
    "Codebook",
    "Entropy",
    "Hadamard",
    "Ones",
    "Palette",
    "Product",
    "Quantize",
    "RandomRotation",
    "Scale",
    "Sparsify",
    "Split",
    "Stage",
    "Sum",
    "Trellis",
]
