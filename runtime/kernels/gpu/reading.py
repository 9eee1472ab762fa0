"""How device code reads a stored matrix: what scales, zero points and codes are, as constants and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite

import torch
from torch import Tensor

from ...stage import CARRY
from ..stored import StoredMatrix, ZeroField
from .code_kinds import BFLOAT16, FLOAT16, Codes, Float, Line, Operand, Table, float_format

OPERANDS: Mapping[torch.dtype, Operand] = {torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
SCALES, LEVELS = "gpu.scale_table", "gpu.levels"  # prepared fields


@dataclass(frozen=True)
class Reading:
    """The constants of a matrix, by the names that device code has for them.

    `columns` 0: one scale at most for a row. `zero_bits` -1: no zero points, 0: floats. `step` 0: levels are
    no line. `multiplier` is for sums of products of numbers that `first` and `step`, or levels, give.
    """

    scale: str
    columns: int
    scale_row: int
    scale_rows: int
    zero_bits: int
    zero_row: int
    first: float
    step: float
    factor: str | None
    multiplier: float

    def constants(self) -> dict[str, object]:
        """What all kernels want to know."""
        return {
            "ZERO_BITS": self.zero_bits,
            "SCALE": self.scale,
            "COLUMNS": self.columns,
            "FACTOR": self.factor is not None,
        }

    def sizes(self) -> dict[str, int]:
        """Steps through scales and zero points."""
        return {"scale_row": self.scale_row, "scale_rows": self.scale_rows, "zero_row": self.zero_row}


@lru_cache(maxsize=1024)
def reading(matrix: StoredMatrix, flat: bool) -> Reading:
    """The reading of a matrix of codes; `flat`: scales are one row, and zero points packed along it."""
    field, zero = matrix.scale, matrix.zero
    by_row = field is None or field.sharing.by_row
    groups, rows = (1, matrix.rows) if field is None else (field.sharing.shape[1], field.sharing.rows)
    line = (0.0, 1.0) if zero else matrix.line or (0.0, 0.0)
    return Reading(
        _kind(matrix),
        0 if by_row or field is None else field.sharing.columns,
        groups,
        rows,
        -1 if zero is None else zero.bits,
        0 if zero is None else _zero_row(zero, matrix, flat),
        *line,
        None if field is None else field.factor,
        1.0 if field is None else field.unit,
    )


def _zero_row(zero: ZeroField, matrix: StoredMatrix, flat: bool) -> int:
    """Numbers, or bits, in a row of zero points."""
    groups = 1 if matrix.scale is None else matrix.scale.sharing.shape[1]
    if not zero.bits:
        return groups
    return zero.bits if flat else -(-groups * zero.bits // 8) * 8


def _kind(matrix: StoredMatrix) -> str:
    field = matrix.scale
    if field is None or field.table is None:
        return "" if field is None else "float"
    return _byte_kind(field.table)


@lru_cache(maxsize=32)
def _byte_kind(table: tuple[float, ...]) -> str:
    """The number format of bytes with these values, where device code knows it without the table."""
    if all(table[i] == 2.0 ** (i - 127) for i in range(255)):
        return "exponent"
    finite = {i: level for i, level in enumerate(table) if isfinite(level)}
    e4m3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    return "e4m3" if all(e4m3[i] == level for i, level in finite.items()) else "table"


@lru_cache(maxsize=1024)
def codes_of(matrix: StoredMatrix, operand: Operand) -> Codes | None:
    """The codes as machine text knows them, or None."""
    if matrix.zero is not None:
        return Line(matrix.bits, None)
    if matrix.line is not None:
        first, step = matrix.line
        zero = -first / step
        if (2 * zero).is_integer() and 0 <= zero <= 1 << matrix.bits:
            return Line(matrix.bits, zero)
    number = float_format(matrix.bits, matrix.levels) if matrix.bits > 1 else None
    if number is not None and _fits(number, operand):
        return number
    if 2 <= matrix.bits <= 4 and all(isfinite(level) for level in matrix.levels):
        return Table(matrix.bits, matrix.levels)
    return None


def _fits(number: Float, operand: Operand) -> bool:
    exponent = number.bits - 1 - number.mantissa
    return exponent <= (5 if operand is FLOAT16 else 7) and 0 <= operand.bias - number.bias <= operand.bias


def tables(matrix: StoredMatrix, device: torch.device) -> dict[str, Tensor]:
    """Small tables that device code looks numbers up in."""
    found = {LEVELS: _tensor(matrix.levels or (0.0,), 1 << matrix.bits, device)}
    if matrix.scale is not None and matrix.scale.table is not None:
        found[SCALES] = _tensor(matrix.scale.table, 256, device)
    return found


def _tensor(values: tuple[float, ...], count: int, device: torch.device) -> Tensor:
    return torch.tensor((*values, *[0.0] * (count - len(values))), dtype=torch.float32, device=device)


def aligned_words(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> Tensor | None:
    """The codes as rows of 32-bit words, where rows are whole words that lie where words may."""
    packed = stored[CARRY]
    if matrix.columns * matrix.bits % 32 or not packed.is_contiguous() or packed.data_ptr() % 4:
        return None
    return packed.view(torch.int32).reshape(matrix.rows, -1)


def tensors(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scales, the table of them, zero points and the factor; codes stand in for what there is not."""
    field, nothing = matrix.scale, stored[CARRY]
    if field is None:
        return nothing, nothing, nothing, nothing
    scales = stored[field.name].contiguous()
    if field.table is not None:
        scales = scales.view(torch.uint8)
    return (
        scales,
        stored.get(SCALES, nothing),
        nothing if matrix.zero is None else stored[matrix.zero.name].contiguous(),
        nothing if field.factor is None else stored[field.factor],
    )
