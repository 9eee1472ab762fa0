"""Weights of any format on CUDA: what a format says of itself, and how its product is cut into programs.

A format gives a function of device code that decodes *units*, some neighbours of a row, and `Coded`, what
that reads. All else is shared: few rows of input by one tile (K shared out to warps, and to programs until
every multiprocessor has work), more rows by tiles of up to 64, and above `FUSED_ROWS`, where decoding once
costs less than decoding in every tile, the weight written out once and torch's product.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interpreted import interpreted
from ..base import Call, Kernel
from ..fixed_weight import with_gradient

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FUSED_ROWS = 256
_NUMBERS = 4096  # of a weight that a program decodes
_FEW = 16


@dataclass(frozen=True)
class Share:
    """Where scales come in, and who shares one.

    `where`: "row" behind a sum, "block" behind that of a batch of K, "unit" on numbers, "" nowhere. `kind` is
    that of `numbers_triton.read_scale`. `rows` rows and `units` units share, `in_row` of them in a row.
    """

    where: Literal["", "row", "block", "unit"] = ""
    kind: str = "float"
    rows: int = 1
    units: int = 1
    in_row: int = 1

    def constants(self, where: str | None = None) -> tuple[str, str, int, int, int]:
        """As device code has it."""
        return self.where if where is None else where, self.kind, self.rows, self.units, self.in_row


def share(kind: str, rows: int, columns: int, shape: tuple[int, int], count: int, block_k: int) -> Share:
    """Scales that `rows` rows and `columns` columns of a matrix share; `count` numbers are a unit.

    Raises ValueError where a group holds no whole units: ask `whole_units` before.
    """
    if columns >= shape[1]:
        return Share("row", kind, rows)
    if not whole_units(columns, shape[1], count):
        raise ValueError(f"groups of {columns} hold no whole units of {count}")
    where: Literal["block", "unit"] = "unit" if columns % block_k else "block"
    return Share(where, kind, rows, columns // count, -(-shape[1] // columns))


def whole_units(columns: int, size: int, count: int) -> bool:
    """Whether a unit has one scale."""
    return columns >= size or columns % count == 0


@dataclass(frozen=True)
class Coded:
    """A weight `[rows, columns]` as device code reads it: `stored` and `form` are what `decode` knows.

    A unit is 2 `pairs` neighbours. `block_k` neighbours are a batch: a power of two, at least four units. Of
    `block_n` rows at a time registers hold what decoding takes. `stages` of loads are on their way.
    """

    shape: tuple[int, int]
    decode: Any
    stored: tuple[Tensor | int, ...]
    form: tuple[Any, ...]
    pairs: int
    scale: tuple[Tensor, Tensor]
    share: Share = Share()
    multiplier: float = 1.0
    block_k: int = 128
    block_n: int = 32
    stages: int = 3


@dataclass(frozen=True)
class Cut:
    """How a product is cut: tiles, warps, batches of K at a time (which warps take), parts of K, stages of
    loads."""

    block_m: int
    block_n: int
    batches: int
    parts: int
    stages: int
    warps: int = 4


def cut_of(coded: Coded, rows: int, dtype: torch.dtype, processors: int) -> Cut:
    """The cut for so many rows of input of a dtype."""
    narrow = dtype != torch.float32  # which no tensor cores multiply as it is
    highest = 64 if narrow and coded.block_n > 16 else 16
    block_m = next(size for size in (8, 16, 32, 64) if rows <= size or size == highest)
    block_n, batches = (coded.block_n, 4) if narrow else (16, 1)
    tiles = -(-rows // block_m) * -(-coded.shape[0] // block_n)
    blocks = -(-coded.shape[1] // (batches * coded.block_k))
    parts = max(1, min(2 * processors // tiles, blocks // 2)) if rows <= _FEW else 1
    return Cut(block_m, block_n, batches, parts, min(coded.stages, 3 if narrow else 2))


def product(
    coded: Coded,
    rows: Tensor,
    bias: Tensor | None,
    low: tuple[Tensor, Coded] | None = None,
    cut: Cut | None = None,
) -> Tensor:
    """The product with rows `[M, K]` of unit stride; `low`: plus that of other rows `[M, r]` with a weight
    `[N, r]`."""
    from . import tiled_triton  # imports Triton
    from .linear_triton import finish

    size, (count, columns) = len(rows), coded.shape
    cut = cut or cut_of(coded, size, rows.dtype, _processors(rows))
    parts = cut.parts > 1
    wide = interpreted()
    narrow = torch.float32 if wide else rows.dtype
    out = torch.empty((cut.parts, size, count), dtype=torch.float32 if parts else narrow, device=rows.device)
    grid = (-(-count // cut.block_n), -(-size // cut.block_m), cut.parts)
    none = (rows, coded)
    second, factor = low or none
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        tiled_triton.linear[grid](
            rows, coded.stored, coded.scale, coded.multiplier, second, factor.stored, factor.scale,
            factor.multiplier, factor.shape[1], rows if bias is None else bias, out,
            size, count, columns, rows.stride(0), -(-columns // (cut.batches * coded.block_k * cut.parts)),
            HAS_BIAS=bias is not None and not parts, FLOAT32=rows.dtype == torch.float32 or wide,
            num_warps=cut.warps, num_stages=cut.stages,
            **constants(coded, cut, size, None if low is None else factor),
        )  # fmt: skip
        if not parts:
            return out[0].to(rows.dtype)
        result = torch.empty((size, count), dtype=narrow, device=rows.device)
        finish[(-(-result.numel() // 256),)](
            out, rows if bias is None else bias, result, cut.parts, size, count,
            HAS_BIAS=bias is not None, ACTIVATION="", BLOCK=256,
        )  # fmt: skip
    return result.to(rows.dtype)


def constants(coded: Coded, cut: Cut, rows: int, low: Coded | None) -> dict[str, Any]:
    """The constants of the device code that follow from formats and a cut."""
    factor = low or coded
    return {
        "DECODE": coded.decode,
        "FORM": coded.form,
        "PAIRS": coded.pairs,
        "SHARE": coded.share.constants(),
        "LOW": factor.decode,
        "LOW_FORM": factor.form,
        "LOW_PAIRS": factor.pairs,
        "LOW_SHARE": factor.share.constants(),
        "HAS_LOW": low is not None,
        "ACTIVATION": "",
        "BATCHES": cut.batches,
        "BLOCK_M": cut.block_m,
        "BLOCK_X": 1 if rows == 1 else cut.block_m,
        "BLOCK_N": cut.block_n,
        "BLOCK_K": coded.block_k,
        "STAGES": cut.stages,
    }


def decoded(coded: Coded, operand: torch.dtype, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The dense weight in a dtype, from numbers that are operands of another until they are scaled."""
    from . import tiled_triton

    rows, columns = coded.shape
    out = torch.empty(coded.shape, dtype=torch.float32 if interpreted() else dtype, device=device)
    sizes = decode_constants(coded, operand)
    grid = (-(-rows // sizes["BLOCK_N"]), -(-columns // coded.block_k))
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        tiled_triton.decode[grid](
            coded.stored, coded.scale, coded.multiplier, out, rows, columns, **sizes, num_warps=4
        )
    return out.to(dtype)


def decode_constants(coded: Coded, operand: torch.dtype) -> dict[str, Any]:
    """The constants of the device code that writes a weight out."""
    from .tiled_triton import TYPES

    return {
        "DECODE": coded.decode,
        "FORM": coded.form,
        "PAIRS": coded.pairs,
        "SHARE": coded.share.constants("unit" if coded.share.where == "block" else coded.share.where),
        "OPERAND": TYPES[operand],
        "BLOCK_N": max(1, _NUMBERS // coded.block_k),
        "UNITS": coded.block_k // (2 * coded.pairs),
    }


class TiledLinear(Kernel):
    """y = x R^T + b for weights of one family of formats; a subclass says which, and how they are read."""

    operation: ClassVar[str] = "linear"
    exact: ClassVar[bool] = False
    """Whether numbers without their scales are operands, so that decoding may go the narrow way."""
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def refuse(self, call: Call) -> str | None:
        if find_spec("triton") is None:
            return "Triton is not installed"
        if call.device != "cuda" and not interpreted():
            return f"the device is {call.device}, and it needs cuda"
        if call.dtype not in DTYPES:
            return f"inputs are {str(call.dtype).removeprefix('torch.')}, not float32, float16 or bfloat16"
        if len(call.shape) != 2 or 0 in call.shape:
            return f"the weight has shape {list(call.shape)}, not a matrix's"
        return self.refuse_weight(call)

    @abstractmethod
    def refuse_weight(self, call: Call) -> str | None:
        """Why a weight stored like this is not taken; the call is on CUDA, and of a matrix."""

    @abstractmethod
    def coded(self, call: Call, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Coded:
        """The weight for device code that multiplies in this dtype; fields may be prepared or not."""

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        return with_gradient(
            lambda x, bias: self._run(call, x, stored, bias), lambda: self._decoded(call, stored), x, bias
        )

    def few(
        self, call: Call, rows: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor | None:
        """A shorter way for these rows `[M, K]`, where there is one."""
        return None

    def _run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, call.shape[1])
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        bias = None if bias is None else bias.contiguous()
        if not len(rows):
            result = rows.new_empty(0, call.shape[0])
        elif len(rows) > FUSED_ROWS:
            result = F.linear(rows, self._decoded(call, stored), bias)
        else:
            found = self.few(call, rows, stored, bias)
            result = (
                product(self.coded(call, stored, working(x.dtype)), rows, bias) if found is None else found
            )
        return result.reshape(*x.shape[:-1], call.shape[0])

    def _decoded(self, call: Call, stored: Mapping[str, Tensor]) -> Tensor:
        device = next(iter(stored.values())).device
        dtype = working(call.dtype) if self.exact else torch.float32
        return decoded(self.coded(call, stored, dtype), dtype, call.dtype, device)


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype that device code multiplies in."""
    return torch.float32 if interpreted() else dtype


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
