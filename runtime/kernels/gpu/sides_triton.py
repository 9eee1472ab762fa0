# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""How the compiler lays joined tensors out for the tensor cores, which versions of Triton do differently.

A thread has a pair of numbers along K of the first operand in a register. Where the operand was put together
by `tl.join`, Triton 3.6 gives it the next pair as well (`kWidth` 4, as if each load were to give two), and
3.9 does not (after triton-lang/triton#10645). Codes become numbers in the registers that the tensor cores
read only if K is in the order in which threads have it, so the compiler is asked.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...interpreted import interpreted


@triton.jit
def _joined(numbers, x, out):
    """A product whose first operand is joined; it is compiled and never run."""
    row, k = tl.arange(0, 16), tl.arange(0, 16)
    half = tl.load(numbers + row[:, None] * 8 + tl.arange(0, 8)[None, :])
    values = tl.join(half, -half).reshape(16, 16)
    inputs = tl.load(x + k[:, None] + row[None, :] * 16)
    tl.store(out + row[:, None] * 16 + k[None, :], tl.dot(values, inputs))


def _side() -> int:
    if interpreted():
        return 1
    kinds = {"numbers": "*bf16", "x": "*bf16", "out": "*fp32"}
    code = triton.compile(
        ASTSource(fn=_joined, signature=kinds, constexprs={}, attrs={}),
        target=GPUTarget("cuda", 80, 32),
        options={"enable_fp_fusion": True},
    )
    return 2 if "kWidth = 4" in code.asm["ttgir"] else 1


SIDE = tl.constexpr(_side())
"""Pairs along K that a thread has side by side in an operand of joined tensors."""
