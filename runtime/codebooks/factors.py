"""Factors of known tables for Gaussian numbers, found once by `fixed.search_factors`, which takes seconds."""

from __future__ import annotations

Key = tuple[str, int, int, int, str]  # source, dimensions, bits, number of codebooks, composition

FACTORS: dict[Key, tuple[float, ...]] = {
    ("e8p", 8, 16, 1, "residual"): (0.965,),
    ("e8p", 8, 16, 2, "residual"): (0.965, 0.292),
    ("e8", 8, 8, 1, "residual"): (1.65,),
    ("e8", 8, 12, 1, "residual"): (1.26,),
    ("d4", 4, 8, 1, "residual"): (0.813,),
    ("gaussian", 4, 8, 2, "residual"): (1.0, 0.328),
}
