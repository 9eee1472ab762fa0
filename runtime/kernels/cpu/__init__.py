"""Kernels for processors, in order of preference: ours in C++, and those that torch has."""

from __future__ import annotations

from ..base import Kernel
from .torch_operators import CpuIntLinear

CPU_KERNELS: tuple[Kernel, ...] = (CpuIntLinear(),)
