"""Triton kernels, in order of preference. Triton is imported only when one runs."""

from __future__ import annotations

from ..base import Kernel
from .cache_attention import PackedCacheAttention
from .codebook_linear import CodebookLinear
from .embedding import PackedEmbedding
from .fp8_linear import Fp8Linear
from .grouped_linear import GroupedLinear
from .hadamard_linear import HadamardLinear
from .int8_linear import Int8Linear
from .linear import TritonLinear, TritonLinearActivation
from .low_rank_linear import LowRankLinear
from .norm_enter import FusedNormEnter
from .sparse_linear import SparseLinear
from .trellis_linear import TrellisLinear

GPU_KERNELS: tuple[Kernel, ...] = (
    TritonLinear(),
    TritonLinearActivation(),
    SparseLinear(),
    CodebookLinear(),
    TrellisLinear(),
    LowRankLinear(),
    Int8Linear(),
    Fp8Linear(),
    HadamardLinear(),
    FusedNormEnter(),
    PackedEmbedding(),
    GroupedLinear(),
    PackedCacheAttention(),
)
