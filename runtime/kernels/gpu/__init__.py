"""Triton kernels, in order of preference. Triton is imported only when one runs."""

from __future__ import annotations

from ..base import Kernel
from .int_linear import IntLinear

GPU_KERNELS: tuple[Kernel, ...] = (IntLinear(),)
