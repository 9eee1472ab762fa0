"""Kernels for processors, in order of preference: ours in C++, then those that torch has."""

from __future__ import annotations

from ..base import Kernel
from .int8_linear import CpuInt8Linear
from .native_embedding import CpuEmbedding
from .native_linear import CpuLinear
from .torch_operators import CpuIntLinear

CPU_KERNELS: tuple[Kernel, ...] = (CpuInt8Linear(), CpuLinear(), CpuEmbedding(), CpuIntLinear())
