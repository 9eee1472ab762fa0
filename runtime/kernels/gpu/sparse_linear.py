"""Weight-only linear on sparse weights, on CUDA: n:m under any storage of places, and masks of single
numbers.

A sparse weight is a format of storage here: survivors are put in their places in registers, and tensor cores
multiply zeros too. What is saved is what is read. 2:4 in whole words goes by machine text (`sparse_text`),
all else number by number. Places under a mask are counted from the start of a stretch of 128 columns; how
many survivors come before each is prepared, 32 bits a stretch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import ClassVar

import torch
from torch import Tensor

from ...interpreted import interpreted
from ...sparsity import Bitmask, GroupIndex, Groups, Rank, Unstructured
from ...stage import CARRY
from ...stages.sparsify import Sparsify
from ..base import Call
from ..stored import StoredMatrix, stored_matrix
from . import scalar_scales
from .code_kinds import Line
from .reading import LEVELS, OPERANDS, codes_of, tables
from .sparse_text import expanding
from .tiled import Coded, Share, TiledLinear, share, whole_units
from .unpacking import unpacking

STARTS, CHOICES = "gpu.starts", "gpu.choices"  # prepared fields
_STRETCH = 128  # columns
_MOST_KEPT = 8
_MOST_UNITS = 16
_IN_WORDS = (2, 4, 8)
_SLOW_ROWS = 16  # at a time where numbers are found one by one


class SparseLinear(TiledLinear):
    """Survivors of n:m, or of a mask of single numbers, dense or as scalar codes."""

    name: ClassVar[str] = "sparse_linear"
    exact: ClassVar[bool] = True

    def refuse_weight(self, call: Call) -> str | None:
        matrix = stored_matrix(call.representation, call.shape)
        if isinstance(matrix, str):
            return matrix
        if matrix.pattern is None:
            return f"{call.representation} is not sparse"
        if matrix.zero is not None:
            return "survivors have zero points"
        return _refuse_places(matrix.pattern) or _refuse_scales(matrix, call.shape)

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {**stored, **_prepared(_matrix(call), call.shape, stored)}

    def coded(self, call: Call, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Coded:
        matrix = _matrix(call)
        ready = stored if LEVELS in stored else {**stored, **_prepared(matrix, call.shape, stored)}
        rows, columns = call.shape
        if isinstance(_pattern(matrix), Groups):
            return _in_words(matrix, ready, (rows, columns), dtype) or _in_groups(
                matrix, ready, (rows, columns)
            )
        return _under_mask(matrix, ready, (rows, columns))


def _refuse_places(pattern: Sparsify) -> str | None:
    kind, places = pattern.pattern, pattern.places
    if isinstance(kind, Groups):
        units, kept = kind.m // kind.vector, kind.n // kind.vector
        if isinstance(places, GroupIndex) and kept > _MOST_KEPT:
            return f"{kept} places are stored for each group, more than {_MOST_KEPT}"
        if isinstance(places, Rank) and comb(units, kept) > 1 << 12:
            return f"{pattern} has {comb(units, kept)} choices for a group"
        return f"groups have {units} parts, more than {_MOST_UNITS}" if units > _MOST_UNITS else None
    if not isinstance(kind, Unstructured):
        return f"{pattern} keeps whole blocks or lines"
    return None if isinstance(places, Bitmask) else f"{pattern} stores places, and it needs a mask"


def _refuse_scales(matrix: StoredMatrix, shape: tuple[int, ...]) -> str | None:
    if matrix.scale is None or matrix.scale.sharing.columns >= matrix.columns:
        return None
    columns = _dense_columns(matrix)
    if columns is None or not whole_units(columns, shape[-1], 8):
        return f"groups of {matrix.scale.sharing.columns} survivors are no groups of columns"
    return None


def _dense_columns(matrix: StoredMatrix) -> int | None:
    """How many columns of the dense weight share a scale; None where survivors do that columns do not."""
    kind = _pattern(matrix)
    assert matrix.scale is not None
    columns = matrix.scale.sharing.columns
    if columns >= matrix.columns:
        return matrix.whole_columns
    if not isinstance(kind, Groups) or columns % kind.n:
        return None
    return columns // kind.n * kind.m


def _in_words(
    matrix: StoredMatrix, stored: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> Coded | None:
    """2:4 by machine text, where rows are whole words and the survivors are what it knows."""
    pattern = matrix.pattern
    assert pattern is not None
    operand = OPERANDS.get(dtype)
    index, codes = stored.get("0.index"), stored[CARRY].contiguous()
    plain = operand is None or index is None or interpreted()
    if plain or (pattern.sparsity_structure, pattern.vector) != ("2:4", 1) or shape[1] % 32:
        return None
    assert operand is not None
    assert index is not None
    known = codes_of(matrix, operand) if matrix.bits in _IN_WORDS else None
    made = None if known is None else unpacking(known, operand, exact=True, together=True)
    if (made is None) != (matrix.bits == 0) or (made is None and codes.dtype != dtype):
        return None
    if codes.data_ptr() % 4 or index.data_ptr() % 4 or not _scales_in(matrix, shape, 32):
        return None
    from .sparse_linear_triton import two_of_four

    words = codes.view(torch.int32).reshape(shape[0], -1)
    places = index.contiguous().view(torch.int32).reshape(shape[0], -1)
    text, constraints = expanding(0 if made is None else made.pairs)
    per_unit = words.shape[1] // places.shape[1]
    unpacks = (0, "", "") if made is None else (made.pairs, made.text, made.constraints)
    step = matrix.line[1] if isinstance(known, Line) and matrix.line is not None else 1.0
    step *= 1.0 if made is None else made.unit
    scale, kind, unit = scalar_scales.scales(matrix, stored)
    return Coded(
        shape, two_of_four, (words, places, words.shape[1], places.shape[1]),
        (per_unit, *unpacks, text, constraints), 16, scale, _share(matrix, kind, shape, 32), unit * step,
    )  # fmt: skip


def _in_groups(matrix: StoredMatrix, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Coded:
    """n:m number by number."""
    from .sparse_linear_triton import groups

    kind, pattern = _pattern(matrix), matrix.pattern
    assert isinstance(kind, Groups)
    assert pattern is not None
    places = pattern.places
    units, kept = kind.m // kind.vector, kind.n // kind.vector
    storage, bits = "mask", 1
    if isinstance(places, GroupIndex | Rank):
        storage = "rank" if isinstance(places, Rank) else "index"
        bits = next(iter(places.widths().values()))
    field = stored[f"0.{storage}"].contiguous().reshape(shape[0], -1)
    codes = stored[CARRY].contiguous().reshape(shape[0], -1)
    scale, by, unit = scalar_scales.scales(matrix, stored)
    return Coded(
        shape, groups,
        (codes, field, stored.get(CHOICES, field), stored[LEVELS], codes.shape[1], field.shape[1]),
        (storage, kept, units, kind.vector, bits, matrix.bits), 4, scale, _share(matrix, by, shape, 8), unit,
        block_n=_SLOW_ROWS, stages=1,
    )  # fmt: skip


def _under_mask(matrix: StoredMatrix, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Coded:
    from .sparse_linear_triton import masked

    kind = _pattern(matrix)
    assert isinstance(kind, Unstructured)
    codes, mask = stored[CARRY].contiguous(), stored["0.mask"].contiguous()
    code_row = codes.shape[-1] if kind.by_row else 0
    scale, by, unit = scalar_scales.scales(matrix, stored)
    rows = 1 if kind.by_row and matrix.scale is not None and matrix.scale.sharing.rows == 1 else shape[0]
    starts = stored[STARTS]
    return Coded(
        shape, masked,
        (codes, mask, starts, stored[LEVELS], code_row, mask.shape[-1], starts.shape[1]),
        (matrix.bits, _STRETCH // 8), 4, scale,
        Share() if matrix.scale is None else Share("row", by, rows), unit,
        block_k=_STRETCH, block_n=_SLOW_ROWS, stages=1,
    )  # fmt: skip


def _share(matrix: StoredMatrix, kind: str, shape: tuple[int, int], count: int) -> Share:
    if matrix.scale is None:
        return Share()
    columns = _dense_columns(matrix)
    assert columns is not None
    return share(kind, matrix.scale.sharing.rows, columns, shape, count, 128)


def _scales_in(matrix: StoredMatrix, shape: tuple[int, int], count: int) -> bool:
    columns = shape[1] if matrix.scale is None else _dense_columns(matrix)
    return columns is not None and whole_units(columns, shape[1], count)


def _prepared(
    matrix: StoredMatrix, shape: tuple[int, ...], stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Levels, byte scales, and what places are found by."""
    found = {**tables(matrix, stored[CARRY].device), **scalar_scales.prepared(matrix, stored)}
    pattern = matrix.pattern
    assert pattern is not None
    if isinstance(pattern.places, Rank):
        choices = _choices(pattern.places.units, pattern.places.kept)
        found[CHOICES] = torch.tensor(choices, dtype=torch.int32, device=stored[CARRY].device)
    kind = pattern.pattern
    if isinstance(kind, Unstructured):
        found[STARTS] = starts_of(stored["0.mask"], shape[-1], by_row=kind.by_row)
    return found


def starts_of(mask: Tensor, columns: int, *, by_row: bool) -> Tensor:
    """How many bits of a packed mask `[rows, bytes]` are set before each stretch, int32 `[rows,
    stretches]`: in its row, or in all of the mask."""
    stretches = -(-columns // _STRETCH)
    padded = torch.nn.functional.pad(
        mask.reshape(-1, mask.shape[-1]), (0, stretches * _STRETCH // 8 - mask.shape[-1])
    )
    ones = sum((padded >> bit) & 1 for bit in range(8))
    assert isinstance(ones, Tensor)
    counts = ones.reshape(len(padded), stretches, -1).sum(-1, dtype=torch.int64)
    if by_row:
        return (counts.cumsum(1) - counts).to(torch.int32)
    return (counts.flatten().cumsum(0).reshape(counts.shape) - counts).to(torch.int32)


@lru_cache(maxsize=32)
def _choices(units: int, kept: int) -> tuple[int, ...]:
    """The masks of all choices by their rank: positions c1 < c2 < ... have rank C(c1, 1) + C(c2, 2) + ..."""
    masks = [0] * (1 << (comb(units, kept) - 1).bit_length() if comb(units, kept) > 1 else 2)
    for chosen in combinations(range(units), kept):
        rank = sum(comb(place, order + 1) for order, place in enumerate(chosen))
        masks[rank] = sum(1 << place for place in chosen)
    return tuple(masks)


def _pattern(matrix: StoredMatrix) -> object:
    assert matrix.pattern is not None
    return matrix.pattern.pattern


def _matrix(call: Call) -> StoredMatrix:
    matrix = stored_matrix(call.representation, call.shape)
    assert isinstance(matrix, StoredMatrix)
    return matrix
