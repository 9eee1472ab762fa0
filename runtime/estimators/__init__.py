"""How gradients pass projections, one file each. A new estimator is a class in a file and a line here."""

from __future__ import annotations

from .banded import Banded
from .base import Estimator
from .block_noise import BlockNoise
from .clip import Clip
from .code_fields import CodeFields
from .commit import Commit
from .eigen_cushion import EigenCushion
from .fix_values import FixValues
from .freeze_codes import FreezeCodes
from .gaussian_weights import GaussianWeights
from .gumbel import Gumbel
from .learned_scale import LearnedScale
from .lsq import Lsq, LsqPlus
from .noise import Noise
from .pact import Pact
from .rigl import RigL
from .soft import Soft
from .sr_ste import SparseRefined
from .stochastic import Stochastic
from .straight_through import StraightThrough
from .trust import Trust

ESTIMATORS: tuple[type[Estimator], ...] = (
    StraightThrough,
    Clip,
    Trust,
    Banded,
    SparseRefined,
    Noise,
    BlockNoise,
    Stochastic,
    Soft,
    RigL,
    Lsq,
    LsqPlus,
    Pact,
    LearnedScale,
    CodeFields,
    FreezeCodes,
    GaussianWeights,
    FixValues,
    EigenCushion,
    Gumbel,
    Commit,
)

__all__ = [
    "ESTIMATORS",
    "Banded",
    "BlockNoise",
    "Clip",
    "CodeFields",
    "Commit",
    "EigenCushion",
    "Estimator",
    "FixValues",
    "FreezeCodes",
    "GaussianWeights",
    "Gumbel",
    "LearnedScale",
    "Lsq",
    "LsqPlus",
    "Noise",
    "Pact",
    "RigL",
    "Soft",
    "SparseRefined",
    "Stochastic",
    "StraightThrough",
    "Trust",
]
