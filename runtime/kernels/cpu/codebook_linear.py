"""Linear on vectors from codebooks, in C++: tables stay in the first caches, codes are read as stored."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ...codebooks import fixed
from ...native.build import Library
from ...packing import packed_length
from ...stage import CARRY
from ...stages.codebook import Codebook
from ..base import Call
from .streamed import STORED, Arranged, StreamedLinear, sources

_LATTICES = ("d4", "e8", "e8p")
_FINE = 4  # times their size, points of E8P are integers
_LARGEST = 16  # numbers of a vector
_FLOAT32 = STORED[torch.float32]


class _Plan(ctypes.Structure):
    """`BookPlan` of codebook_plan.h."""

    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in ("rows", "columns", "row_bytes", "bytes", "vectors", "book_rows")
        ],
        *[(name, ctypes.c_int64) for name in ("share_columns", "scale_columns", "share_rows")],
        *[(name, ctypes.c_int32) for name in ("bits", "books", "size", "product", "book_kind", "scale_kind")],
        ("e8p", ctypes.c_int32),
        ("unit", ctypes.c_float),
    ]


class CpuCodebookLinear(StreamedLinear):
    """One codebook stage: every source, composition, scope and width of code, with scales or without."""

    name: ClassVar[str] = "cpu_codebook_linear"
    library: ClassVar[Library] = sources(
        "codebook_linear",
        *(f"codebook_{name}" for name in ("plan", "codes", "tables", "planes", "e8p", "rows", "direct")),
    )
    most: ClassVar[int] = 72

    def unfit(self, call: Call) -> str | None:
        stages = call.representation.bound_stages
        if len(stages) != 1 or not isinstance(stages[0], Codebook):
            return f"{call.representation} is not one codebook stage"
        if stages[0].in_group_size > _LARGEST:
            return f"vectors of {stages[0].in_group_size} numbers are longer than {_LARGEST}"
        if (
            stages[0].source == "e8p"
            and stages[0].composition == "product"
            and len(set(stages[0].factors or ())) > 1
        ):
            return "parts of a vector have different factors"
        return None

    def arranged(self, call: Call, stored: Mapping[str, Tensor]) -> Arranged:
        stage = _stage(call)
        scale, books = stored.get("0.scale"), stored.get("0.codebook")
        plan = _plan(
            stage,
            call.shape,
            _FLOAT32 if books is None else STORED[books.dtype],
            0 if scale is None else STORED[scale.dtype],
        )
        return Arranged(plan, (stored[CARRY], scale, _known(stage, plan.unit) if books is None else books))


def _stage(call: Call) -> Codebook:
    (stage,) = call.representation.bound_stages
    assert isinstance(stage, Codebook)
    return stage


@lru_cache(maxsize=1024)
def _plan(stage: Codebook, shape: tuple[int, int], book_kind: int, scale_kind: int) -> _Plan:
    rows, columns = shape
    vectors = -(-columns // stage.in_group_size)
    row_bytes = packed_length(vectors * stage.num_codebooks, stage.nbits_per_codebook)
    product = stage.composition == "product"
    group = stage.group_size or columns
    return _Plan(
        rows=rows,
        columns=columns,
        row_bytes=row_bytes,
        bytes=rows * row_bytes,
        vectors=vectors,
        book_rows=stage.rows_per_codebook or rows,
        share_columns=group,
        scale_columns=-(-columns // group),
        share_rows=rows if stage.strategy == "tensor" else 1,
        bits=stage.nbits_per_codebook,
        books=stage.num_codebooks,
        size=stage.in_group_size // (stage.num_codebooks if product else 1),
        product=product,
        book_kind=book_kind,
        scale_kind=scale_kind,
        e8p=stage.source == "e8p",
        unit=1.0 if group < columns else _unit(stage),
    )


def _unit(stage: Codebook) -> float:
    """What is left to the end of rows, where these have one scale: points of a lattice are then multiplied
    as they are, without rounding."""
    if stage.source not in _LATTICES or stage.num_codebooks > 1:
        return 1.0
    assert stage.factors is not None
    return stage.factors[0] / (_FINE if stage.source == "e8p" else 1)


@lru_cache(maxsize=256)
def _known(stage: Codebook, unit: float) -> Tensor:
    """The codebooks that follow from the options over a unit, float32; of E8P the factors alone."""
    if stage.table is not None:
        return torch.tensor(stage.table)
    factors = torch.tensor(stage.factors)
    if stage.source == "e8p":
        return factors
    size = stage.in_group_size // (stage.num_codebooks if stage.composition == "product" else 1)
    points = fixed.points(stage.source, size, stage.nbits_per_codebook)
    return (points * (factors / unit)[:, None, None]).contiguous()
