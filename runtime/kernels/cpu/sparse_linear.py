"""Linear on sparse weights, in C++: survivors, dense or quantised, are moved to their places in cache.

What is read is what is stored: bit masks, positions of n:m groups or their ranks, compressed sparse rows,
and survivors in one row or in rows of their own. `prepare` adds where each row's survivors begin, where that
varies.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from math import comb, prod
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import WorkError
from ...native.build import Library
from ...packing import packed_length, unpack
from ...sparsity import (
    Bitmask,
    Blocks,
    Columns,
    Csr,
    GroupIndex,
    Groups,
    PackedIndex,
    Rank,
    Rows,
    Unstructured,
)
from ...sparsity.storage import position_bits
from ...stage import CARRY
from ...stages.sparsify import Sparsify
from ..base import Call
from ..stored import StoredMatrix, stored_matrix
from .matrix import with_plan
from .streamed import STORED, Arranged, StreamedLinear, sources

_MASK, _CHOICES, _INDICES, _RANKS, _OFFSETS, _BLOCKS, _LINES = range(7)
_CODES = 7  # of `Kind` in scalar_plan.h
_TABLE_BITS, _MASK_BITS = 12, 64  # of the codes of a table of masks, and of the masks
_TREE = 256  # of GroupPlaces in sparse_groups.h
_STARTS, _PLAN = "cpu.starts", "cpu.plan"


class _Plan(ctypes.Structure):
    """`SparsePlan` of sparse_plan.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("rows", "columns", "survivors", "survivor_columns")],
        *[(name, ctypes.c_int64) for name in ("place_row_bytes", "place_bytes")],
        *[(name, ctypes.c_int32) for name in ("kind", "place_bits", "kept", "of", "vector", "step")],
        *[(name, ctypes.c_int32) for name in ("block_rows", "block_columns", "flat", "stored", "absolute")],
    ]


class CpuSparseLinear(StreamedLinear):
    """One pattern of zeros whose survivors are dense or one quantize stage."""

    name: ClassVar[str] = "cpu_sparse_linear"
    library: ClassVar[Library] = sources(
        "sparse_linear",
        *(
            f"sparse_{name}"
            for name in ("plan", "groups", "places", "survivors", "expand", "rows", "gathered")
        ),
    )
    most: ClassVar[int] = 72
    most_by_eights: ClassVar[int] = 72

    def unfit(self, call: Call) -> str | None:
        matrix = stored_matrix(call.representation, call.shape)
        if isinstance(matrix, str):
            return matrix
        if matrix.pattern is None:
            return "the matrix is not sparse"
        return _unfit_places(matrix.pattern)

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        matrix = _matrix(call)
        found = dict(with_plan(call, stored)) if matrix.bits else dict(stored)
        starts = _starts(matrix, call.shape, stored)
        return found if starts is None else {**found, _STARTS: starts}

    def arranged(self, call: Call, stored: Mapping[str, Tensor]) -> Arranged:
        matrix = _matrix(call)
        if (matrix.bits and _PLAN not in stored) or (_varies(matrix) and _STARTS not in stored):
            stored = self.prepare(call, stored)
        assert matrix.pattern is not None
        field = stored[f"0.{_field(matrix.pattern)}"]
        plan = _plan(matrix, call.shape, STORED.get(stored[CARRY].dtype, _CODES), field.nbytes)
        names = [_STARTS, None, _PLAN]
        if matrix.scale is not None:
            zero = None if matrix.zero is None else matrix.zero.name
            names += [matrix.scale.name, zero, matrix.scale.factor]
        starts, _, *others = (None if name is None else stored.get(name) for name in names)
        others += [None] * (4 - len(others))
        if others[0] is None:
            others[0] = _no_plan()
        return Arranged(plan, (stored[CARRY], field, starts, _choices(matrix.pattern), *others))


def _matrix(call: Call) -> StoredMatrix:
    matrix = stored_matrix(call.representation, call.shape)
    assert isinstance(matrix, StoredMatrix), "the call was refused"
    return matrix


def _unfit_places(stage: Sparsify) -> str | None:
    """Why the places of survivors are not stored as C++ reads them."""
    pattern, places = stage.pattern, stage.places
    if isinstance(pattern, Blocks | Rows | Columns) and not isinstance(places, Bitmask):
        return f"{stage} stores the places of whole lines or blocks by {stage.storage}, not as a bitmask"
    if isinstance(pattern, Groups) and isinstance(places, Bitmask) and pattern.vector > 1:
        return f"{stage} has a bit for {pattern.vector} numbers"
    return None


def _varies(matrix: StoredMatrix) -> bool:
    """Whether rows of places have not all as many survivors."""
    assert matrix.pattern is not None
    pattern = matrix.pattern.pattern
    return isinstance(pattern, Blocks | Rows) or (isinstance(pattern, Unstructured) and not pattern.by_row)


def _field(stage: Sparsify) -> str:
    """The field of the places, without `row_offsets`."""
    known = {Bitmask: "mask", GroupIndex: "index", PackedIndex: "index", Rank: "rank", Csr: "columns"}
    return known[type(stage.places)]


def _starts(matrix: StoredMatrix, shape: tuple[int, ...], stored: Mapping[str, Tensor]) -> Tensor | None:
    """How many survivors, blocks or lines are before each row of places, and in all: int64."""
    stage = matrix.pattern
    if stage is None or not _varies(matrix):
        return None
    pools = stage.pattern.pools(shape)
    if isinstance(stage.places, Csr):
        starts = stored["0.row_offsets"].long()
    elif isinstance(stage.places, PackedIndex):
        places = unpack(stored["0.index"], position_bits(pools.units), pools.kept).long()
        starts = torch.searchsorted(places, torch.arange(shape[0] + 1) * shape[1])
    else:
        bits = unpack(stored["0.mask"].view(torch.uint8), 1, pools.mask[-1])
        counts = bits.sum(-1, dtype=torch.int64) if bits.ndim > 1 else bits.long()
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    if int(starts[0]) or int(starts[-1]) != pools.total or bool((starts.diff() < 0).any()):
        raise WorkError("places of a sparse tensor are damaged", advice="load it from another copy")
    return starts.contiguous()


@lru_cache(maxsize=1024)
def _plan(matrix: StoredMatrix, shape: tuple[int, int], stored: int, place_bytes: int) -> _Plan:
    stage = matrix.pattern
    assert stage is not None
    rows, columns = shape
    pattern, places = stage.pattern, stage.places
    plan = _Plan(
        rows=rows,
        columns=columns,
        survivors=matrix.rows * matrix.columns,
        survivor_columns=matrix.columns,
        place_bytes=place_bytes,
        kind=_kind(stage),
        flat=_varies(matrix) and not isinstance(pattern, Rows),
        stored=stored,
        kept=1,
        of=1,
        vector=1,
        step=8,
    )
    if isinstance(pattern, Groups):
        plan.kept, plan.of, plan.vector = pattern.n, pattern.m, pattern.vector
        joined = _joined(stage)
        if isinstance(places, GroupIndex):
            plan.place_bits = position_bits(places.units)
        elif isinstance(places, Rank):
            plan.place_bits = places.bits
        if plan.kind == _CHOICES and joined is not None:
            plan.step, plan.place_bits = joined * pattern.m, joined * _code_bits(stage)
    elif isinstance(places, Csr | PackedIndex):
        units = columns if isinstance(places, Csr) else pattern.pools(shape).units
        plan.place_bits, plan.absolute = position_bits(units), units != columns
    if isinstance(pattern, Blocks):
        plan.block_rows, plan.block_columns = pattern.rows, pattern.columns
    plan.place_row_bytes = _place_row_bytes(stage, shape)
    return plan


def _kind(stage: Sparsify) -> int:
    if isinstance(stage.pattern, Blocks | Rows):
        return _BLOCKS if isinstance(stage.pattern, Blocks) else _LINES
    if isinstance(stage.places, Bitmask):
        return _MASK
    if isinstance(stage.places, GroupIndex | Rank):
        alone = _INDICES if isinstance(stage.places, GroupIndex) else _RANKS
        return alone if _joined(stage) is None else _CHOICES
    return _OFFSETS


def _place_row_bytes(stage: Sparsify, shape: tuple[int, int]) -> int:
    """Bytes from the places of one row to those of the next, 0 where all rows have the same."""
    layout = stage.places.layout(stage.pattern.pools(shape))[_field(stage)]
    if len(layout.shape) < 2:
        return 0
    bits = stage.places.widths().get(_field(stage), 8 * layout.dtype.itemsize)
    return packed_length(prod(layout.shape[1:]), bits)


def _code_bits(stage: Sparsify) -> int:
    """Bits of the places of one group."""
    places = stage.places
    if isinstance(places, Rank):
        return places.bits
    assert isinstance(places, GroupIndex)
    return places.kept * position_bits(places.units)


def _joined(stage: Sparsify) -> int | None:
    """How many groups together have a mask of whole bytes, and a code for which there is a table."""
    pattern = stage.pattern
    if not isinstance(pattern, Groups) or not isinstance(stage.places, Rank | GroupIndex):
        return None
    for count in (1, 2, 4, 8):
        fits = count * _code_bits(stage) <= _TABLE_BITS and count * pattern.m <= _MASK_BITS
        if count * pattern.m % 8 == 0:
            return count if fits else None
    return None


@lru_cache(maxsize=64)
def _choices(stage: Sparsify) -> Tensor | None:
    """The mask of every code of groups together, lowest bit first: uint8 for eight numbers, else int64.

    For ranks without such a table the trees of `_binomials`, int32 `[kept, 256]`.
    """
    joined, pattern, places = _joined(stage), stage.pattern, stage.places
    if joined is None and isinstance(places, Rank):
        return _binomials(places)
    if joined is None or not isinstance(pattern, Groups):
        return None
    bits, units = _code_bits(stage), pattern.m // pattern.vector
    codes = torch.arange(1 << bits)
    if isinstance(places, Rank):
        valid = codes.clamp_max(_count(pattern) - 1).to(torch.int32)
        flat = places.decode({"rank": valid}, pattern.pools((pattern.m * len(codes),)))
        inside = flat.reshape(len(codes), -1) % units
    else:
        width = position_bits(units)
        inside = (codes.unsqueeze(1) >> (width * torch.arange(pattern.n // pattern.vector))) & (
            (1 << width) - 1
        )
    one = torch.zeros_like(codes)
    for column in inside.unbind(1):
        one |= torch.where(column < units, ((1 << pattern.vector) - 1) << (column * pattern.vector), 0)
    table = one
    for _ in range(joined - 1):  # the first group of those together is in the lowest bits
        table = (one.reshape(-1, 1) << (pattern.m * (len(table).bit_length() - 1) // bits)) | table.reshape(
            1, -1
        )
        table = table.reshape(-1)
    return table.to(torch.uint8 if joined * pattern.m == 8 else torch.int64).contiguous()


def _binomials(places: Rank) -> Tensor:
    """What C++ finds positions by: each row a search tree of the counts of positions from 1 on, the root in
    place 1; no rank is as large as what stands for positions past the last."""
    most, levels = torch.iinfo(torch.int32).max, (places.units - 1).bit_length()
    tree = torch.full((places.kept, _TREE), most, dtype=torch.int32)
    for level in range(levels):
        for i in range(1 << level):
            position = (2 * i + 1) << (levels - level - 1)
            for order in range(places.kept) if position < places.units else ():
                tree[order, (1 << level) + i] = min(comb(position, order + 1), most)
    return tree


def _count(pattern: Groups) -> int:
    return comb(pattern.m // pattern.vector, pattern.n // pattern.vector)


@lru_cache(maxsize=1)
def _no_plan() -> Tensor:
    """In the place of a plan for survivors that are dense."""
    return torch.zeros(1 << 12, dtype=torch.uint8)
