"""Linear on trellis codes, in C++: windows of the stored bits become values in cache.

For bfloat16 inputs, values that are Gaussian quantiles at a rank are computed from the rank, by lines between
quantiles in place of a table that no first cache holds; they differ by less than bfloat16 rounds. For float32
inputs every value is the one of the table.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...native.build import Library
from ...packing import packed_length
from ...stage import CARRY
from ...stages.trellis import Trellis
from ...trellises.codes import CodeName, one_mad, three_inst, values
from ..base import Call
from .streamed import STORED, Arranged, StreamedLinear, sources

_TABULATED, _RANKED, _ONE_MAD, _THREE_INST = range(4)  # CodeKind of trellis_plan.h
_WINDOWS = 3
_RANK_BITS = 16  # more do not fit in two bytes
_LINES, _FINE = 128, 256
_COMPUTED = {"1mad": (_ONE_MAD, one_mad), "3inst": (_THREE_INST, three_inst)}
_MAD_UNIT = 147.800537109375  # by which the sums of 1MAD are divided


class _Plan(ctypes.Structure):
    """`TrellisPlan` of trellis_plan.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("rows", "columns", "row_bytes", "bytes")],
        *[(name, ctypes.c_int64) for name in ("share_rows", "share_columns", "scale_columns")],
        *[(name, ctypes.c_int32) for name in ("bits", "state_bits", "scale_kind", "code")],
        ("unit", ctypes.c_float),
        ("turned", ctypes.c_uint32),
        ("states", ctypes.c_uint64 * _WINDOWS * _WINDOWS),
        ("ranks", ctypes.c_uint64 * _WINDOWS * 2),
    ]


class CpuTrellisLinear(StreamedLinear):
    """One trellis stage: every code, width and state, with scales of the tensor, of rows or of groups."""

    name: ClassVar[str] = "cpu_trellis_linear"
    library: ClassVar[Library] = sources(
        "trellis_linear",
        "codebook_plan",
        *(f"trellis_{name}" for name in ("plan", "states", "eights", "values")),
    )
    most: ClassVar[int] = 128
    most_by_eights: ClassVar[int] = 32

    def unfit(self, call: Call) -> str | None:
        stages = call.representation.bound_stages
        if len(stages) != 1 or not isinstance(stages[0], Trellis):
            return f"{call.representation} is not one trellis stage"
        return None

    def arranged(self, call: Call, stored: Mapping[str, Tensor]) -> Arranged:
        stage, scale = _stage(call), stored["0.scale"]
        plan = _plan(stage, call.shape, STORED[scale.dtype])
        table, unit = _table(stage.code, stage.num_bits, stage.state_bits)
        plan.unit = unit
        ranks = _rank_tables(stage.num_bits, stage.state_bits) if plan.code == _RANKED else None
        return Arranged(plan, (stored[CARRY], scale, table, ranks))


def _stage(call: Call) -> Trellis:
    (stage,) = call.representation.bound_stages
    assert isinstance(stage, Trellis)
    return stage


@lru_cache(maxsize=1024)
def _plan(stage: Trellis, shape: tuple[int, int], scale_kind: int) -> _Plan:
    rows, columns = shape
    row_bytes = packed_length(columns, stage.num_bits)
    group = stage.group_size or columns
    code = _COMPUTED[stage.code][0] if stage.code in _COMPUTED else _TABULATED
    if stage.code == "xor" and stage.state_bits <= _RANK_BITS:
        code = _RANKED
    plan = _Plan(
        rows=rows,
        columns=columns,
        row_bytes=row_bytes,
        bytes=rows * row_bytes,
        share_rows=rows if stage.strategy == "tensor" else 1,
        share_columns=group,
        scale_columns=-(-columns // group),
        bits=stage.num_bits,
        state_bits=stage.state_bits,
        scale_kind=scale_kind,
        code=code,
    )
    bits = [1 << bit for bit in range(stage.state_bits)]
    for byte in range(_WINDOWS):
        plan.states[byte] = _matrices([c >> (8 * byte) & 255 for c in bits], stage.num_bits)
    if code == _RANKED:
        columns_of = _folded(stage.num_bits, stage.state_bits)
        for byte in range(2):
            plan.ranks[byte] = _matrices([c >> (8 * byte) & 255 for c in columns_of], stage.num_bits)
        plan.turned = 0x8000 | ((1 << (stage.state_bits - 1)) - 1) << (_RANK_BITS - stage.state_bits)
    return plan


def _matrices(columns: list[int], num_bits: int) -> ctypes.Array[ctypes.c_uint64]:
    """What gf2p8affineqb takes of each byte of a window, for the byte that is the sum over GF(2) of the
    `columns` of those bits of a state that are set."""
    found = [0] * _WINDOWS
    for bit, column in enumerate(columns):
        # the bits of a number are together, the highest last, and numbers lie in the order of a row
        behind = (bit // num_bits + 1) * num_bits - bit % num_bits - 1
        place = 7 - behind % 8
        for row in range(8):
            if column >> row & 1:
                found[behind // 8] |= 1 << (8 * (7 - row) + place)
    return (ctypes.c_uint64 * _WINDOWS)(*found)


@lru_cache(maxsize=64)
def _folded(num_bits: int, state_bits: int) -> list[int]:
    """For each bit of a state what it adds over GF(2) to 16 bits: the highest says that the value is above
    the middle, the others are its rank there, or its complement below, high bits first."""
    known = values("xor", num_bits, state_bits).numpy()
    ranks = np.empty(len(known), dtype=np.int64)
    ranks[np.argsort(known, kind="stable")] = np.arange(len(known))
    top, rest = 1 << (state_bits - 1), (1 << (state_bits - 1)) - 1
    columns = [int(ranks[1 << bit]) for bit in range(state_bits)]
    folded = [(c & top) | ((c & rest) ^ (rest if c & top else 0)) for c in columns]
    return [c << (_RANK_BITS - state_bits) for c in folded]


@lru_cache(maxsize=64)
def _rank_tables(num_bits: int, state_bits: int) -> Tensor:
    """`RankTables` of trellis_plan.h: the lines of least squares through the values above the middle."""
    known = values("xor", num_bits, state_bits).sort().values[1 << (state_bits - 1) :]
    step = 1 << (_RANK_BITS - state_bits)  # between ranks, of 2^15
    pattern = known.numpy().view(np.uint32).astype(np.float64) / (1 << 15)
    value, rank = known.double().numpy(), np.arange(len(known)) * step
    base, slope, last = np.zeros(_LINES), np.zeros(_LINES), np.zeros(_FINE)
    for line in range(_LINES):
        here = rank // _FINE == line
        if here.any():
            base[line], slope[line] = _line(rank[here] % _FINE / _FINE, pattern[here], value[here])
    ends = rank // _FINE == _LINES - 1
    last[rank[ends] % _FINE] = 2.0 * known[torch.from_numpy(ends)].bfloat16().view(torch.int16).numpy()
    words = [np.clip(np.round(each), 0, 65535).astype(np.int64) for each in (base + 1, slope, last)]
    planes = [plane for word in words for plane in (word & 255, word >> 8)]
    return torch.from_numpy(np.concatenate(planes).astype(np.uint8))


def _line(x: np.ndarray, y: np.ndarray, value: np.ndarray) -> tuple[float, float]:
    """Intercept and slope for patterns `y` of values, whose errors count as those of the values do."""
    if len(x) < 2:
        return float(y[0]), 0.0
    weight = value / value.max()
    slope, base = np.polyfit(x, y, 1, w=weight)
    return float(base), float(slope)


@lru_cache(maxsize=32)
def _table(code: CodeName, num_bits: int, state_bits: int) -> tuple[Tensor, float]:
    """The values of states, float32 `[2^state_bits]`, over a unit: that of numbers that are computed."""
    known = values(code, num_bits, state_bits)
    if code not in _COMPUTED:
        return known.contiguous(), 1.0
    numbers = _COMPUTED[code][1](torch.arange(1 << state_bits)).double() * (
        _MAD_UNIT if code == "1mad" else 1
    )
    numbers = numbers.round() if code == "1mad" else numbers
    unit = (known.double().square().sum() / numbers.square().sum()).sqrt()
    return numbers.float().contiguous(), float(unit)
