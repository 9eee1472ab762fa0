"""Fused operations on packed weights, one file each, in order of preference; the last always matches."""

from __future__ import annotations

from dataclasses import replace

from ..representation import Representation
from .base import Call, Kernel, Refusal, Selection
from .by_parts import LinearByParts
from .cache_attention import DecodeCacheAttention
from .composed import OVER_LINEAR, ComposedNormEnter
from .cpu import CPU_KERNELS
from .decode_embedding import DecodeEmbedding
from .decode_grouped import DecodeGrouped
from .decode_linear import DecodeLinear
from .gpu import GPU_KERNELS
from .tuning import by_rows, measured

DENSE = Representation()
KERNELS: tuple[Kernel, ...] = (
    *GPU_KERNELS,
    *CPU_KERNELS,
    LinearByParts(),
    DecodeLinear(),
    DecodeEmbedding(),
    DecodeGrouped(),
    DecodeCacheAttention(),
)

__all__ = ["KERNELS", "Call", "Kernel", "Refusal", "Selection", "candidates", "select"]


def select(call: Call) -> Selection:
    """The first kernel of the operation that takes the call, with the refusals of those before it; where it
    was measured here which of those that take it is the fastest, that one.

    A fused operation that no kernel takes is composed of its parts; the refusals are then those of both.

    Raises:
        LookupError: no kernel exists for the operation at all (a fault of ours, not of the caller).
    """
    refusals: list[Refusal] = []
    taking: list[Kernel] = []
    for kernel in KERNELS:
        if kernel.operation != call.operation or not kernel.is_for(call.device):
            continue
        reason = kernel.refuse(call)
        if reason is None:
            taking.append(kernel)
        elif not taking:
            refusals.append(Refusal(kernel.name, reason))
    if taking:
        return Selection(_fastest(call, taking), tuple(refusals))
    if call.operation == ComposedNormEnter.operation:
        return Selection(ComposedNormEnter(), tuple(refusals))
    if call.operation in OVER_LINEAR:
        composed, linear = _composed(call)
        return Selection(composed, (*refusals, *linear.refusals))
    raise LookupError(f"no kernel for operation {call.operation!r}")


def candidates(call: Call) -> list[Kernel]:
    """Every kernel that takes the call, the preferred one first, and what composes it of its parts."""
    asked = [k for k in KERNELS if k.operation == call.operation and k.is_for(call.device)]
    taking = [kernel for kernel in asked if kernel.refuse(call) is None]
    return [*taking, _composed(call)[0]] if call.operation in OVER_LINEAR else taking


def _fastest(call: Call, taking: list[Kernel]) -> Kernel:
    found = measured(call)
    if found is None:
        return taking[0]
    return by_rows(call, found, candidates(call)) or taking[0]


def _composed(call: Call) -> tuple[Kernel, Selection]:
    """The operation as the linear alone and what is around it, and what was selected for the linear."""
    alone = replace(call, operation="linear", activation="", input=DENSE, rotation=DENSE)
    linear = select(alone)
    return OVER_LINEAR[call.operation](alone, linear.kernel), linear
