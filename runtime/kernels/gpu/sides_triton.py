# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""How the compiler lays joined tensors out for the tensor cores, which versions of Triton do differently.

A thread has a pair of numbers along K of the first operand in a register. Where the operand was put together
by `tl.join`, Triton 3.6 and 3.7 give it the next pair as well (`kWidth` 4, as if each load were to give two),
and 3.8 does not (after triton-lang/triton#10645). Where bytes were loaded for it, scales of numbers, all give
it three more. Codes become numbers in the registers that the tensor cores read only if K is in the order in
which threads have it, so the compiler is asked.
"""

from __future__ import annotations

import re
from functools import cache

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...interpreted import interpreted


@triton.jit
def _joined(numbers, scales, x, out, BYTES: tl.constexpr):
    """A product whose first operand is joined; it is compiled and never run."""
    row, k = tl.arange(0, 16), tl.arange(0, 64)
    place = row[:, None] * 16 + tl.arange(0, 16)[None, :]
    quarter = tl.load(numbers + place)
    if BYTES:
        quarter *= tl.load(scales + place).to(quarter.dtype)
    half = tl.join(quarter, -quarter)
    values = tl.join(half, -half).reshape(16, 64)
    inputs = tl.load(x + k[:, None] + row[None, :] * 64)
    tl.store(out + row[:, None] * 16 + row[None, :], tl.dot(values, inputs))


@cache
def side(scaled_by_bytes: bool) -> int:
    """Pairs along K that a thread has side by side in an operand of joined tensors."""
    if interpreted():
        return 1
    kinds = {"numbers": "*bf16", "scales": "*u8", "x": "*bf16", "out": "*fp32", "BYTES": "constexpr"}
    code = triton.compile(
        ASTSource(fn=_joined, signature=kinds, constexprs={"BYTES": scaled_by_bytes}, attrs={}),
        target=GPUTarget("cuda", 80, 32),
        options={"enable_fp_fusion": True},
    )
    widths = re.findall(r"opIdx = 0[^>]*kWidth = (\d+)", code.asm["ttgir"])
    return int(widths[0]) // 2


SIDE = tl.constexpr(side(False))
"""That of an operand that is not scaled by bytes."""
