"""What int8_linear.cpp is told of a product: how codes become integers, and what shares scales."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Generic, Protocol, TypeVar

from ..base import Call
from ..stored import StoredMatrix, stored_matrix
from .int8_input import Entering, entering

_LOOKED_UP = 6  # bits of codes that a table takes
_LARGEST = 255  # integer without a sign
_TOGETHER = 4  # columns that are added up before any scale


class Product(ctypes.Structure):
    """`Product` of int8_product.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("rows", "columns", "row_bytes")],
        *[(name, ctypes.c_int64) for name in ("share_rows", "share_columns", "scale_columns", "zero_bytes")],
        *[(name, ctypes.c_int64) for name in ("input_columns", "input_scales", "piece", "stride")],
        *[
            (name, ctypes.c_int32)
            for name in ("bits", "doubled", "looked_up", "stored", "zero_bits", "center")
        ],
        *[(name, ctypes.c_int32) for name in ("grouped", "bfloat")],
        *[(name, ctypes.c_float) for name in ("unit", "half")],
        ("table", ctypes.c_uint8 * 64),
        ("bytes", ctypes.c_float * 256),
        ("wide", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Integers:
    """Levels as `step * (u + center + half)` for integers u without a sign, of 8 bits: the code itself, twice
    the code, or `table[code]`."""

    step: float
    center: int
    half: float = 0.0
    doubled: bool = False
    table: tuple[int, ...] = ()


class InputLayout(Protocol):
    """How the codes of an input lie."""

    @property
    def columns(self) -> int:
        """That share a scale."""

    @property
    def scales(self) -> int:
        """Of a row."""

    @property
    def stride(self) -> int:
        """Codes from one row to the next."""


Layout = TypeVar("Layout", bound=InputLayout, covariant=True)


@dataclass(frozen=True, eq=False)
class Described(Generic[Layout]):
    """A call that is taken: its weight and its input."""

    matrix: StoredMatrix
    integers: Integers
    input: Layout
    piece: int

    @property
    def decoding(self) -> str:
        """How C++ makes integers of codes: `Decoding` of int8_decode.h."""
        return "LOOKED_UP" if self.integers.table else "RAW" if self.matrix.bits == 8 else "PACKED"


@lru_cache(maxsize=1024)
def described(call: Call) -> Described[Entering] | str:
    """What a call of `input_linear` is to the kernel, or why it is not taken."""
    found = weight_integers(call)
    if isinstance(found, str):
        return found
    matrix, integers = found
    how = entering(call)
    if isinstance(how, str):
        return how
    assert matrix.scale is not None
    sizes = (matrix.scale.sharing.columns, how.columns)
    piece = math.gcd(*(size if size < matrix.columns else 0 for size in sizes)) or matrix.columns
    if piece < matrix.columns and piece % _TOGETHER:
        return f"scales change after {piece} columns, which is not a multiple of {_TOGETHER}"
    return Described(matrix, integers, how, piece)


def weight_integers(call: Call) -> tuple[StoredMatrix, Integers] | str:
    """The matrix of a call, and its levels as integers; or why they are none of 8 bits."""
    if len(call.shape) != 2:
        return f"the weight has shape {list(call.shape)}, not a matrix's"
    matrix = stored_matrix(call.representation, call.shape)
    if isinstance(matrix, str):
        return matrix
    if matrix.pattern is not None or matrix.scale is None:
        return f"{call.representation} leaves numbers out"
    if matrix.zero is not None and not matrix.zero.bits:
        return f"{call.representation} has zero points that are no integers"
    integers = integers_of(matrix.levels, matrix.bits)
    if integers is None:
        return f"the levels of {call.representation} are no integers of 8 bits"
    return matrix, integers


def integers_of(levels: Sequence[float], bits: int) -> Integers | None:
    """Levels in the order of their codes as integers, where they are."""
    low, rising = min(levels), sorted(set(levels))
    step = min((high - below for below, high in pairwise(rising)), default=0.0)
    if not step or not all(math.isfinite(level) for level in levels):
        return None
    u = [(level - low) / step for level in levels]
    center = low / step
    if max(u) > _LARGEST or 2 * center != round(2 * center) or any(n != round(n) for n in u):
        return None
    whole, half = math.floor(center), center - math.floor(center)
    straight = u == list(range(len(u)))
    if straight and half and bits < 8:
        return Integers(step / 2, round(2 * center), doubled=True)
    if straight:
        return Integers(step, whole, half)
    if half or bits > _LOOKED_UP:
        return None
    return Integers(step, whole, table=tuple(round(n) for n in u))


def product_of(
    found: Described[InputLayout], stored: int, *, zero_rows: bool, bfloat: bool, wide: bool
) -> Product:
    """The structure for C++. `stored`: how scales are; `zero_rows`: zero points are packed row by row;
    `wide`: codes of the input have 16 bits."""
    matrix, how, integers = found.matrix, found.input, found.integers
    scale, zero = matrix.scale, matrix.zero
    assert scale is not None
    zero_bits = zero.bits if zero is not None else 0
    table = integers.table
    return Product(
        rows=matrix.rows,
        columns=matrix.columns,
        row_bytes=-(-matrix.columns * matrix.bits // 8),
        share_rows=scale.sharing.rows,
        share_columns=scale.sharing.columns,
        scale_columns=scale.sharing.shape[1],
        zero_bytes=-(-scale.sharing.shape[1] * zero_bits // 8) if zero_rows else 0,
        input_columns=how.columns,
        input_scales=how.scales,
        piece=found.piece,
        stride=how.stride,
        bits=matrix.bits,
        doubled=integers.doubled,
        looked_up=bool(table),
        stored=stored,
        zero_bits=zero_bits,
        center=integers.center,
        grouped=how.scales > 1 or wide,
        bfloat=bfloat,
        unit=scale.unit * integers.step,
        half=integers.half,
        table=(ctypes.c_uint8 * 64)(*table),
        bytes=(ctypes.c_float * 256)(*(scale.table or ())),
        wide=wide,
    )
