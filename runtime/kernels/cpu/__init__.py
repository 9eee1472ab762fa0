"""Kernels for processors, in order of preference: ours in C++, then those that torch has."""

from __future__ import annotations

from ..base import Kernel
from .cache_attention import CpuCacheAttention
from .codebook_linear import CpuCodebookLinear
from .fixed_linear import CpuFixedLinear
from .int8_linear import CpuInt8Linear
from .native_embedding import CpuEmbedding
from .native_linear import CpuLinear
from .sparse_linear import CpuSparseLinear
from .torch_operators import CpuIntLinear
from .trellis_linear import CpuTrellisLinear

CPU_KERNELS: tuple[Kernel, ...] = (
    CpuInt8Linear(),
    CpuFixedLinear(),
    CpuLinear(),
    CpuEmbedding(),
    CpuCodebookLinear(),
    CpuTrellisLinear(),
    CpuSparseLinear(),
    CpuIntLinear(),
    CpuCacheAttention(),
)
