"""One-shot fitting of represented weights to calibration inputs, one file for each way. A new fitter is a
class in a file and a line here."""

from __future__ import annotations

from .awq import Awq, search_scale
from .fitter import Fitted, Fitter
from .gptq import Gptq
from .gram import Gram, GramAccumulator, gram
from .low_rank import LowRank
from .output_scales import why_no_output_scales, with_output_scales
from .round_to_nearest import RoundToNearest
from .sparse_gptq import SparseGptq

FITTERS: tuple[type[Fitter], ...] = (RoundToNearest, Gptq, SparseGptq, Awq, LowRank)

__all__ = [
    "FITTERS",
    "Awq",
    "Fitted",
    "Fitter",
    "Gptq",
    "Gram",
    "GramAccumulator",
    "LowRank",
    "RoundToNearest",
    "SparseGptq",
    "gram",
    "search_scale",
    "why_no_output_scales",
    "with_output_scales",
]
