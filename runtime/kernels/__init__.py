"""Fused operations on packed weights, one file each, in order of preference; the last always matches."""

from __future__ import annotations

from dataclasses import replace

from ..representation import Representation
from .base import Call, Kernel, Refusal, Selection
from .by_parts import LinearByParts
from .composed import OVER_LINEAR, ComposedNormEnter
from .cpu import CPU_KERNELS
from .decode_embedding import DecodeEmbedding
from .decode_linear import DecodeLinear
from .gpu import GPU_KERNELS

DENSE = Representation()
KERNELS: tuple[Kernel, ...] = (*GPU_KERNELS, *CPU_KERNELS, LinearByParts(), DecodeLinear(), DecodeEmbedding())

__all__ = ["KERNELS", "Call", "Kernel", "Refusal", "Selection", "select"]


def select(call: Call) -> Selection:
    """The first kernel of the operation that takes the call, with the refusals of those before it.

    A fused operation that no kernel takes is composed of its parts; the refusals are then those of both.

    Raises:
        LookupError: no kernel exists for the operation at all (a fault of ours, not of the caller).
    """
    refusals: list[Refusal] = []
    for kernel in KERNELS:
        if kernel.operation != call.operation:
            continue
        reason = kernel.refuse(call)
        if reason is None:
            return Selection(kernel, tuple(refusals))
        refusals.append(Refusal(kernel.name, reason))
    if call.operation == ComposedNormEnter.operation:
        return Selection(ComposedNormEnter(), tuple(refusals))
    if call.operation in OVER_LINEAR:
        alone = replace(call, operation="linear", activation="", input=DENSE, rotation=DENSE)
        linear = select(alone)
        composed = OVER_LINEAR[call.operation](alone, linear.kernel)
        return Selection(composed, (*refusals, *linear.refusals))
    raise LookupError(f"no kernel for operation {call.operation!r}")
