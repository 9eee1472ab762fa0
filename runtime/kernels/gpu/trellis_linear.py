"""Weight-only linear on trellis codes, on CUDA: windows of bits become numbers in registers.

The code words of a unit are put into the opposite order once; then the state of each is one shift of them and
of the unit before, which for a row's first unit is its last one. 1MAD and 3INST are worked out as integers.
The numbers of `xor` and `table` are looked up: where a window that is one code longer has up to 14 bits, two
at a time, in a table of pairs of operands.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ...interpreted import interpreted
from ...stage import CARRY
from ...stages.trellis import Trellis
from ...trellises.codes import one_mad, three_inst, values
from ..base import Call
from .reading import OPERANDS
from .tiled import Coded, TiledLinear, share, whole_units
from .trellis_text import trellis_text

TABLE = "gpu.states"  # a prepared field, by dtype
_UNITS = {1: (32, 32), 2: (32, 16), 3: (24, 8), 4: (32, 8)}  # bits of a unit, codes of it, by bits of a code
_PAIR_BITS = 14


class TrellisLinear(TiledLinear):
    """Numbers under a trellis code, of all codes and widths."""

    name: ClassVar[str] = "trellis_linear"

    def refuse_weight(self, call: Call) -> str | None:
        stages = call.representation.bound_stages
        if len(stages) != 1 or not isinstance(stages[0], Trellis):
            return f"{call.representation} is not one trellis"
        stage, size = stages[0], call.shape[1]
        _, count = _UNITS[stage.num_bits]
        if size % count:
            return f"rows of {size} are not made of units of {count}"
        if not whole_units(stage.group_size or size, size, count):
            return f"groups of {stage.group_size} hold no whole units of {count}"
        return None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        device = stored[CARRY].device
        tables = {
            f"{TABLE}.{dtype}": _table(_stage(call), dtype, device) for dtype in (torch.float32, *OPERANDS)
        }
        return {**stored, **tables}

    def coded(self, call: Call, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Coded:
        stage, (rows, columns) = _stage(call), call.shape
        bits, count = _UNITS[stage.num_bits]
        codes = stored[CARRY].contiguous()
        if bits == 32:
            codes = codes if codes.data_ptr() % 4 == 0 else codes.clone()
            codes = codes.view(torch.int32)
        from .trellis_linear_triton import trellis

        name = f"{TABLE}.{dtype}"
        table = stored[name] if name in stored else _table(stage, dtype, codes.device)
        operand = OPERANDS.get(dtype)
        text = ("", "")
        if _computed(stage) and operand is not None and not interpreted():
            text = trellis_text(stage.code, operand)
        scale, shares = stored["0.scale"].contiguous(), rows if stage.strategy == "tensor" else 1
        return Coded(
            (rows, columns), trellis, (codes, table, codes.shape[-1]),
            (stage.num_bits, stage.state_bits, bits, count, _kind(stage, dtype), *text),
            count // 2, (scale, scale),
            share("float", shares, stage.group_size or columns, (rows, columns), count, 128), _unit(stage),
            stages=2 if _computed(stage) else 3,
        )  # fmt: skip


def _kind(stage: Trellis, dtype: torch.dtype) -> str:
    """How states become numbers."""
    if _computed(stage):
        return stage.code
    narrow = stage.state_bits + stage.num_bits <= _PAIR_BITS
    return "pairs" if narrow and dtype != torch.float32 else "table"


def _computed(stage: Trellis) -> bool:
    return stage.code in ("1mad", "3inst")


@lru_cache(maxsize=16)
def _unit(stage: Trellis) -> float:
    """What the numbers of device code are multiplied by."""
    if not _computed(stage):
        return 1.0
    found = values(stage.code, stage.num_bits, stage.state_bits).double()
    states = torch.arange(len(found))
    numbers = one_mad(states) * 147.800537109375 if stage.code == "1mad" else three_inst(states)
    largest = int(numbers.abs().argmax())
    return float(found[largest] / numbers[largest])


@lru_cache(maxsize=32)
def _table(stage: Trellis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers of states, or of pairs of them by longer windows; none where they are computed."""
    kind = _kind(stage, dtype)
    if kind == stage.code and _computed(stage):
        return torch.zeros(1, dtype=torch.float32, device=device)
    found = values(stage.code, stage.num_bits, stage.state_bits).to(dtype)
    if kind == "pairs":
        window = torch.arange(len(found) << stage.num_bits)
        both = torch.stack([found[window >> stage.num_bits], found[window % len(found)]], -1)
        found = both.contiguous().view(torch.int32).squeeze(-1)
    return found.to(device)


def _stage(call: Call) -> Trellis:
    (stage,) = call.representation.bound_stages
    assert isinstance(stage, Trellis)
    return stage
