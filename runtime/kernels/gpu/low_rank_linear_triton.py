# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device code that reads scalar codes and dense numbers for `tiled_triton`: residuals and factors of low
rank."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers_triton import alike, loaded
from .sparse_linear_triton import number_at
from .tiled_triton import numbers_in_order


@triton.jit
def scalars(stored, FORM: tl.constexpr, row, unit, inside, K, OPERAND: tl.constexpr):
    """Codes in whole words by machine text: FORM is (words of a unit, numbers of it, text and
    constraints)."""
    words, word_row = stored
    taken = loaded(words + row * word_row + unit * FORM[0], inside, 0, FORM[0], False)
    numbers = tl.inline_asm_elementwise(
        FORM[2], FORM[3], taken, dtype=alike(OPERAND, FORM[1]), is_pure=True, pack=1
    )
    values = numbers_in_order(numbers, 0, 1, FORM[1])
    return values.reshape(values.shape[0], values.shape[1], values.shape[2], FORM[1])


@triton.jit
def elements(stored, FORM: tl.constexpr, row, unit, inside, K, OPERAND: tl.constexpr):
    """Codes of FORM[0] bits, or numbers (0), one by one; units of 8."""
    codes, levels, code_row = stored
    k = unit[:, :, :, None] * 8 + tl.arange(0, 8)[None, None, None, :]
    line = row[:, :, :, None]
    return number_at(codes, levels, line, code_row, k, (k < K) & (line >= 0), FORM[0]).to(OPERAND)
