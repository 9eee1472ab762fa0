"""Linear on low rank plus a packed residual, on CUDA, in one pass: y = L (R x) + Q x + b.

R x is small, and a product of its own. One kernel then multiplies the residual with x and the left factor
with R x, each decoded in registers, into the same sums: nothing is written and added again. What that kernel
cannot read is left to `linear_by_parts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ...entering import rotate
from ...interpreted import interpreted
from ...stage import CARRY
from ...stages import Product, Sum
from ..base import Call
from ..by_parts import LinearByParts, Part
from ..fixed_weight import with_gradient
from ..stored import StoredMatrix, stored_matrix
from . import scalar_scales
from .code_kinds import Line, Table
from .codebook_linear import CodebookLinear
from .reading import LEVELS, OPERANDS, aligned_words, codes_of, tables
from .sparse_linear import SparseLinear
from .tiled import FUSED_ROWS, Coded, Share, TiledLinear, product, share, whole_units, working
from .trellis_linear import TrellisLinear
from .unpacking import unpacking

_LEAST = 8  # numbers of a unit
_BLOCK_K = 128


class ScalarReading(TiledLinear):
    """Dense numbers, and scalar codes without zero points, as the second factor and the residual may be."""

    name: ClassVar[str] = "scalar_reading"

    def refuse_weight(self, call: Call) -> str | None:
        if call.representation.is_dense:
            return None
        matrix = stored_matrix(call.representation, call.shape)
        if isinstance(matrix, str):
            return matrix
        if matrix.pattern is not None or matrix.zero is not None:
            return f"{call.representation} has zero points or a pattern"
        columns = matrix.columns if matrix.scale is None else matrix.scale.sharing.columns
        if not whole_units(columns, matrix.columns, _LEAST):
            return f"groups of {columns} hold no whole units of {_LEAST}"
        return None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if call.representation.is_dense:
            return stored
        matrix = _matrix(call)
        made = tables(matrix, stored[CARRY].device)
        return {**stored, **made, **scalar_scales.prepared(matrix, stored)}

    def coded(self, call: Call, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Coded:
        from .low_rank_linear_triton import elements

        rows, columns = call.shape
        if call.representation.is_dense:
            dense = stored[CARRY].contiguous()
            return Coded(
                (rows, columns),
                elements,
                (dense, dense, columns),
                (0,),
                _LEAST // 2,
                (dense, dense),
                block_n=16,
            )
        matrix = _matrix(call)
        ready = stored if LEVELS in stored else self.prepare(call, stored)
        fast = _by_text(matrix, ready, (rows, columns), dtype)
        if fast is not None:
            return fast
        codes = ready[CARRY].contiguous().reshape(rows, -1)
        scale, shared, unit = _scales(matrix, ready, (rows, columns), _LEAST)
        return Coded(
            (rows, columns), elements, (codes, ready[LEVELS], codes.shape[1]), (matrix.bits,),
            _LEAST // 2, scale, shared, unit, block_n=16,
        )  # fmt: skip


def _by_text(
    matrix: StoredMatrix, stored: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> Coded | None:
    """Codes in whole units of words that machine text knows, where there are such."""
    from .low_rank_linear_triton import scalars

    operand, words = OPERANDS.get(dtype), aligned_words(matrix, stored)
    codes = None if operand is None else codes_of(matrix, operand)
    if operand is None or codes is None or words is None or interpreted():
        return None
    made = unpacking(codes, operand, exact=True)
    count = 2 * made.pairs
    columns = matrix.columns if matrix.scale is None else matrix.scale.sharing.columns
    if not whole_units(columns, matrix.columns, count) or 4 * count > _BLOCK_K:
        return None
    scale, shared, unit = _scales(matrix, stored, shape, count)
    unit *= made.unit * (matrix.line[1] if isinstance(codes, Line) and matrix.line is not None else 1.0)
    return Coded(
        shape, scalars, (words, words.shape[1]), (made.words, count, made.text, made.constraints),
        made.pairs, scale, shared, unit, block_n=16 if isinstance(codes, Table) else 32,
    )  # fmt: skip


def _scales(
    matrix: StoredMatrix, stored: Mapping[str, Tensor], shape: tuple[int, int], count: int
) -> tuple[tuple[Tensor, Tensor], Share, float]:
    scale, kind, unit = scalar_scales.scales(matrix, stored)
    if matrix.scale is None:
        return scale, Share(), unit
    sharing = matrix.scale.sharing
    return scale, share(kind, sharing.rows, sharing.columns, shape, count, _BLOCK_K), unit


READERS: tuple[TiledLinear, ...] = (ScalarReading(), SparseLinear(), CodebookLinear(), TrellisLinear())
"""What the fused kernel can decode."""


class LowRankLinear(TiledLinear):
    """A sum of two: a product of factors, and a residual; residual and left factor of any kind in READERS."""

    name: ClassVar[str] = "low_rank_linear"

    def refuse_weight(self, call: Call) -> str | None:
        parts = _parts(call)
        if isinstance(parts, str):
            return parts
        for part in parts[1:]:
            if _reader(_inner(call, part)) is None:
                reasons = [reader.refuse_weight(_inner(call, part)) for reader in READERS]
                return f"{part.representation} is read by none of its parts' kernels: {reasons[0]}"
        return None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        right, left, rest = _found(call)
        found = {**stored, **right.prepared(call, stored)}
        for part in (left, rest):
            reader = _read_by(call, part)
            made = reader.prepare(_inner(call, part), part.fields(stored))
            found |= {f"{part.prefix}>{name}": tensor for name, tensor in made.items()}
        return found

    def coded(self, call: Call, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Coded:
        raise NotImplementedError("it is two weights")

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        if not 0 < x.numel() // call.shape[1] <= FUSED_ROWS:
            return LinearByParts().run(call, x, stored, bias)
        return with_gradient(
            lambda x, bias: self._fused(call, x, stored, bias), lambda: _whole(call, stored), x, bias
        )

    def _fused(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        right, left, rest = _found(call)
        rows = x.reshape(-1, call.shape[1])
        low = rotate(right.linear(call, rows, stored), left.representation.rotation).contiguous()
        turned = rotate(rows, rest.representation.rotation)
        turned = turned if turned.stride(-1) == 1 else turned.contiguous()
        dtype = working(x.dtype)
        factor, residual = (_coded(call, part, stored, dtype) for part in (left, rest))
        bias = None if bias is None else bias.contiguous()
        result = product(residual, turned, bias, (low, factor))
        return result.reshape(*x.shape[:-1], call.shape[0])


def _coded(call: Call, part: Part, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Coded:
    start = f"{part.prefix}>"
    ready = {name.removeprefix(start): t for name, t in stored.items() if name.startswith(start)}
    return _read_by(call, part).coded(_inner(call, part), ready or part.fields(stored), dtype)


def _whole(call: Call, stored: Mapping[str, Tensor]) -> Tensor:
    return call.representation.decode(call.representation.unpack(stored, call.shape, call.dtype))


def _read_by(call: Call, part: Part) -> TiledLinear:
    reader = _reader(_inner(call, part))
    assert reader is not None, "the call was refused"
    return reader


def _inner(call: Call, part: Part) -> Call:
    return replace(call, representation=part.representation.core, shape=part.shape)


@lru_cache(maxsize=1024)
def _reader(call: Call) -> TiledLinear | None:
    """What decodes a part."""
    return next((reader for reader in READERS if reader.refuse_weight(call) is None), None)


@lru_cache(maxsize=1024)
def _parts(call: Call) -> tuple[Part, Part, Part] | str:
    """The right factor, the left one, and the residual; or why the weight is none such."""
    stages = call.representation.bound_stages
    only = stages[0] if len(stages) == 1 else None
    if not isinstance(only, Sum) or len(only.terms) != 2:
        return f"{call.representation} is not a sum of two"
    first, rest = only.terms
    low = first.bound_stages[0] if len(first.stages) == 1 else None
    if not isinstance(low, Product):
        return f"{first} is not a product"
    (rows, rank), right_shape = low.shapes(call.shape)
    return (
        Part("0.0.0.right", low.right, right_shape),
        Part("0.0.0.left", low.left, (rows, rank)),
        Part("0.1", rest, (call.shape[0], call.shape[1])),
    )


def _found(call: Call) -> tuple[Part, Part, Part]:
    parts = _parts(call)
    assert not isinstance(parts, str), "the call was refused"
    return parts


def _matrix(call: Call) -> StoredMatrix:
    matrix = stored_matrix(call.representation, call.shape)
    assert isinstance(matrix, StoredMatrix)
    return matrix
