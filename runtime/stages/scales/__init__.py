"""Scales of the scalar quantiser: what shares one, how it follows from the numbers, and how it is stored.

A new rule is a class in a file, a line in `RULES`, and a word in `quantize.Observer`.
"""

from __future__ import annotations

from . import rounding
from .affine import AFFINE_RULES, AffineRule, Codes
from .base import CHUNK, OfMaximum, Rule, Setting
from .ms_eden import MsEden
from .powers import PowerRule
from .search import Mse
from .statistics import Absmax, Absmean, FourOverSix, Learned, Percentile, Rms, SignedAbsmax, ThreeSigma
from .storage import E8M0, Floating, Nested, PowerOfTwo, Storage
from .tiling import Tiling

RULES: dict[str, Rule] = {
    "absmax": Absmax(),
    "signed": SignedAbsmax(),  # absmax with `absmax_rule: signed`
    "mse": Mse(),
    "rms": Rms(),
    "percentile": Percentile(),
    "absmean": Absmean(),
    "four_over_six": FourOverSix(),
    "ms_eden": MsEden(),
    "learned": Learned(),
    "three_sigma": ThreeSigma(),
    "mx_floor": PowerRule("floor"),
    "mx_even": PowerRule("even"),
    "mx_ceil": PowerRule("ceil"),
    "mx_rceil": PowerRule("rceil"),
    "mx_round": PowerRule("round"),
    "mx_roundmax": PowerRule("roundmax"),
    "three_quarters": PowerRule("three_quarters"),
}

__all__ = [
    "AFFINE_RULES",
    "CHUNK",
    "E8M0",
    "RULES",
    "AffineRule",
    "Codes",
    "Floating",
    "Nested",
    "OfMaximum",
    "PowerOfTwo",
    "PowerRule",
    "Rule",
    "Setting",
    "Storage",
    "Tiling",
    "rounding",
]
