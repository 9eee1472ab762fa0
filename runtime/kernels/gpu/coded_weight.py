"""How the codes of a stored matrix become the numbers that tensor cores multiply with coded inputs."""

from __future__ import annotations

from dataclasses import dataclass

from ..stored import StoredMatrix
from .quantize_input import Form, float8_codes, form_of

_ALIGNED = (1, 2, 4, 8)
_SHORTEST = 32  # bytes that tensor cores take at once
_LONGEST = 1 << 17  # products of bytes that 32 bits hold the sum of


@dataclass(frozen=True)
class Weight:
    """Weights are (number + shift - zero `zero_times`) times `multiplier` and their scale.

    Without a table (`levels` empty) numbers are made of codes by shifts, `per` codes in a byte.
    """

    per: int = 1
    levels: tuple[float, ...] = ()
    shift: float = 0.0
    zero_times: float = 1.0
    multiplier: float = 1.0


def int8_weight(matrix: StoredMatrix, group: int) -> Weight | str:
    """Weights as int8 numbers; `group` columns of a row share all scales."""
    if matrix.columns > _LONGEST:
        return f"sums of {matrix.columns} products of bytes do not fit 32 bits"
    if group % _SHORTEST and group < matrix.columns:
        return f"groups of {group} are no multiple of {_SHORTEST}"
    per = 8 // matrix.bits if matrix.bits in _ALIGNED else 1
    if matrix.bits in _ALIGNED and matrix.line is not None and fits(group, matrix.columns, per):
        first, step = matrix.line
        power = 2.0 ** (8 - matrix.bits)
        shift = power * (2.0 ** (matrix.bits - 1) + first / step)
        return Weight(per, shift=shift, zero_times=power, multiplier=step / power)
    form = form_of(matrix.levels)
    if form is None or form.float8 or form.half:
        return "its levels are not those of bytes"
    return Weight(levels=form.levels, zero_times=form.times, multiplier=1 / form.times)


def float8_weight(matrix: StoredMatrix, group: int) -> Weight | str:
    """Weights as e4m3 numbers."""
    if matrix.zero is not None:
        return "it has zero points"
    if group % _SHORTEST and group < matrix.columns:
        return f"groups of {group} are no multiple of {_SHORTEST}"
    known = float8_codes()
    if any(level == level and level not in known for level in matrix.levels):
        return "its levels are not e4m3 numbers"
    codes = tuple(float(known.get(level, 0x7F)) for level in matrix.levels)
    own = all(
        level != level or level == 0 or code == place
        for place, (level, code) in enumerate(zip(matrix.levels, codes, strict=True))
    )
    return Weight() if matrix.bits == 8 and own else Weight(levels=codes)


def float_weight(matrix: StoredMatrix) -> Weight:
    """Weights as floats in order, for inputs that are not coded."""
    if matrix.bits in _ALIGNED and matrix.line is not None:
        first, step = matrix.line
        shift = 2.0 ** (matrix.bits - 1) + first / step
        return Weight(8 // matrix.bits, shift=shift, multiplier=step)
    return Weight(levels=matrix.levels)


def fits(group: int, columns: int, per: int) -> bool:
    """Whether groups are made of whole blocks of bytes."""
    return group >= columns or group % (_SHORTEST * per) == 0


def coded(form: Form, matrix: StoredMatrix, group: int) -> Weight | str:
    """Weights in the form of the inputs."""
    return float8_weight(matrix, group) if form.float8 else int8_weight(matrix, group)
