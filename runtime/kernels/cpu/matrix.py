"""A stored matrix of scalar codes as C++ reads it, and what C++ computes with one."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...native.build import Library, loaded
from ...native.threads import shared_out
from ...packing import packed_length
from ...stage import CARRY
from ..base import Call
from ..stored import ScaleField, StoredMatrix, stored_matrix

_HEADERS = (
    "vectors",
    "strip",
    "stored_numbers",
    "scalar_plan",
    "decode_codes",
    "decode_eights",
    "decode_scales",
    "decode_scalar",
    "decode_choice",
    "few",
    "few_sixteen",
    "few_eights",
    "one_input",
)
_FLAGS = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic")  # half the time of -O3, and as fast
SOURCES = Library(
    "linear", Path(__file__).parent, "linear.cpp", tuple(f"{name}.h" for name in _HEADERS), _FLAGS
)
WIDE, PAIRS, EIGHTS = 1, 2, 3
"""What a processor may have: byte permutations of 512 bits, products of bfloat16 too, or AVX2 alone."""
_CHUNK = 64  # numbers that inputs are padded to
_WAY = 4096  # bytes after which addresses share their place in a first cache
_SEVERAL = 3  # inputs that are read side by side
_CODES = 256
_KINDS = ("", "float32", "float16", "bfloat16", "e8m0", "e4m3", "table", "codes")
_PLAN = "cpu.plan"


class _Layout(ctypes.Structure):
    """`Plan` of scalar_plan.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("rows", "columns", "row_bytes", "share_rows", "share_columns")],
        *[(name, ctypes.c_int64) for name in ("scale_columns", "zero_bytes")],
        *[
            (name, ctypes.c_int32)
            for name in ("bits", "scale_kind", "zero_kind", "zero_bits", "few", "exact")
        ],
        ("unit", ctypes.c_float),
        *[(name, ctypes.c_float * _CODES) for name in ("levels", "table")],
    ]


def refusal(call: Call) -> str | None:
    """Why a weight is none that C++ takes; the first call that asks for a CPU compiles it."""
    if call.device != "cpu":
        return f"the device is {call.device}, and it needs cpu"
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"inputs are {str(call.dtype).removeprefix('torch.')}, not float32, bfloat16 or float16"
    if len(call.shape) != 2:
        return f"the weight has shape {list(call.shape)}, not a matrix's"
    matrix = stored_matrix(call.representation, call.shape)
    if isinstance(matrix, str):
        return matrix
    if matrix.pattern is not None:
        return f"the matrix holds the survivors of {matrix.pattern}"
    library = _library()
    return library if isinstance(library, str) else None


def has() -> int:
    """What the processor has: nothing that matters (0), `WIDE`, `PAIRS` or `EIGHTS`."""
    found: int = _functions().rhoc_has()
    return found


def with_plan(call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The fields, and beside them the plan that C++ reads them by."""
    if _PLAN in stored:
        return stored
    matrix, stored = _matrix(call), narrow(stored)
    if matrix.scale is not None and matrix.scale.factor is not None:
        stored = {**stored, matrix.scale.factor: stored[matrix.scale.factor].float()}
    scale = None if matrix.scale is None else stored[matrix.scale.name].dtype
    zero = None if matrix.zero is None else stored[matrix.zero.name]
    plan = plan_of(matrix, scale, None if zero is None else zero.dtype, zero is not None and zero.ndim > 1)
    return _Planned(call, {**stored, _PLAN: plan})


def narrow(stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The fields with float32 for float64, which C++ does not read: those of a weight that was packed as
    float64."""
    wide = {name: tensor.float() for name, tensor in stored.items() if tensor.dtype == torch.float64}
    return {**stored, **wide} if wide else stored


def product(
    call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """x R^T + b for `x` `[..., k]`, rounded once to `dtype` (float32 or bfloat16).

    Sums are float32; products are, too, unless `x` is bfloat16 and the processor multiplies that.
    """
    library, weight, level = _functions(), _Weight.of(call, stored), has()
    pairs = level == PAIRS and x.dtype == torch.bfloat16
    out = torch.empty(*x.shape[:-1], weight.rows, dtype=dtype)
    if not out.numel():
        return out
    rows = x.reshape(-1, weight.columns)
    rows = spaced(rows) if level == EIGHTS else padded(rows if pairs else rows.float())
    if bias is not None:
        bias = bias.to(dtype).contiguous()
    count, stride = rows.shape[0], rows.stride(0)
    given = (rows.data_ptr(), count, stride, pairs, None if bias is None else bias.data_ptr())
    result = (out.data_ptr(), dtype == torch.bfloat16)

    def work(first: int, last: int) -> None:
        library.rhoc_linear(*weight.addresses, *given, *result, first, last)

    shared_out(work, weight.rows, weight.rows * weight.columns)
    return out


def decoded(
    call: Call, stored: Mapping[str, Tensor], dtype: torch.dtype, which: Tensor | None = None
) -> Tensor:
    """The matrix in float32 or bfloat16, the very numbers that the representation decodes.

    `which` (int64, any shape) names rows: the result is then `[*which.shape, k]`.

    Raises:
        IndexError: there is no such row.
    """
    library, weight = _functions(), _Weight.of(call, stored)
    if which is not None:
        which = which.contiguous()
        if which.numel() and not 0 <= int(which.min()) <= int(which.max()) < weight.rows:
            raise IndexError(f"rows {int(which.min())} to {int(which.max())} of a matrix of {weight.rows}")
    shape = (weight.rows,) if which is None else tuple(which.shape)
    out = torch.empty(*shape, weight.columns, dtype=dtype)
    chosen, target = None if which is None else which.data_ptr(), (out.data_ptr(), dtype == torch.bfloat16)

    def work(first: int, last: int) -> None:
        library.rhoc_rows(*weight.addresses, chosen, *target, first, last)

    shared_out(work, out.numel() // weight.columns, out.numel())
    return out


@dataclass(frozen=True)
class _Weight:
    """Where the fields of a matrix are. They must stay alive, and are those that were given here."""

    rows: int
    columns: int
    addresses: tuple[int | None, ...]
    fields: tuple[Tensor | None, ...]  # kept alive

    @staticmethod
    def of(call: Call, stored: Mapping[str, Tensor]) -> _Weight:
        if isinstance(stored, _Planned) and stored.weight is not None:
            return stored.weight
        matrix = _matrix(call)
        scale, zero = matrix.scale, matrix.zero
        names = (
            _PLAN,
            CARRY,
            None if scale is None else scale.name,
            None if zero is None else zero.name,
            None if scale is None else scale.factor,
        )
        known = with_plan(call, stored)
        fields = tuple(None if name is None else known[name].contiguous() for name in names)
        addresses = tuple(None if field is None else field.data_ptr() for field in fields)
        return _Weight(matrix.rows, matrix.columns, addresses, fields)


class _Planned(dict[str, Tensor]):
    """Fields and their plan; where they are has been worked out once, unless copies of them would be kept.

    Whoever keeps it makes it anew when a field is replaced (`Packed.prepared`)."""

    def __init__(self, call: Call, fields: Mapping[str, Tensor]) -> None:
        super().__init__(fields)
        self.weight: _Weight | None = None
        if all(field.is_contiguous() for field in fields.values()):
            self.weight = _Weight.of(call, self)


def padded(x: Tensor) -> Tensor:
    """Rows one after the other, with zeros behind each where chunks go past its end."""
    count, columns = x.shape
    if not columns % _CHUNK:
        return x.contiguous()
    out = x.new_zeros(count, columns + -columns % _CHUNK)
    out[:, :columns] = x
    return out


def spaced(x: Tensor) -> Tensor:
    """`padded` in float32, with rows that do not all begin at the same place of a cache's ways."""
    count, columns = x.shape
    wide = columns + -columns % _CHUNK
    if count < _SEVERAL or wide * 4 % _WAY:
        return padded(x.float())
    out = torch.empty(count, wide + _CHUNK)
    out[:, :columns] = x
    out[:, columns:] = 0
    return out


def _matrix(call: Call) -> StoredMatrix:
    matrix = stored_matrix(call.representation, call.shape)
    assert isinstance(matrix, StoredMatrix)
    return matrix


@lru_cache(maxsize=1024)
def plan_of(
    matrix: StoredMatrix, scale_dtype: torch.dtype | None, zero_dtype: torch.dtype | None, zeros_in_rows: bool
) -> Tensor:
    """What C++ reads a matrix by, as bytes. `zeros_in_rows`: zero points are packed row by row."""
    scale, zero = matrix.scale, matrix.zero
    layout = _Layout(
        rows=matrix.rows,
        columns=matrix.columns,
        row_bytes=packed_length(matrix.columns, matrix.bits),
        share_rows=matrix.rows,
        share_columns=matrix.columns,
        scale_columns=1,
        bits=matrix.bits,
        levels=_repeated(matrix),
        few=matrix.bits <= 4,
        exact=_same(levels := torch.tensor(matrix.levels), levels.bfloat16().float()),
        unit=1.0,
    )
    if scale is not None:
        sharing = scale.sharing
        layout.share_rows, layout.share_columns = sharing.rows, sharing.columns
        layout.scale_columns, layout.unit = sharing.shape[1], scale.unit
        layout.scale_kind = _kind(scale, scale_dtype)
        layout.table = (ctypes.c_float * _CODES)(*(scale.table or ()))
    if zero is not None:
        layout.zero_kind = _KINDS.index("codes" if zero.bits else _name(zero_dtype))
        layout.zero_bits = zero.bits
        layout.zero_bytes = packed_length(layout.scale_columns, zero.bits) if zeros_in_rows else 0
    return torch.frombuffer(bytearray(layout), dtype=torch.uint8)


def _repeated(matrix: StoredMatrix) -> ctypes.Array[ctypes.c_float]:
    """The levels of all bytes, of which only the lower bits are a code."""
    count = 1 << matrix.bits
    known = [*matrix.levels, *[matrix.levels[-1]] * (count - len(matrix.levels))]
    return (ctypes.c_float * _CODES)(*known * (_CODES // count))


def _kind(scale: ScaleField, dtype: torch.dtype | None) -> int:
    if scale.table is None:
        return _KINDS.index(_name(dtype))
    table = torch.tensor(scale.table)
    return _KINDS.index(next((name for name, t in _tables().items() if _same(table, t)), "table"))


@lru_cache(maxsize=1)
def _tables() -> dict[str, Tensor]:
    """What bytes of scales stand for that C++ computes."""
    every = torch.arange(_CODES, dtype=torch.uint8)
    dtypes = {"e8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}
    return {name: every.view(dtype).to(torch.float32) for name, dtype in dtypes.items()}


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    return bound(SOURCES)


def bound(sources: Library) -> ctypes.CDLL | str:
    """The functions of a library, with what they take and return, or why there are none."""
    library = loaded(sources)
    if isinstance(library, str):
        return library
    address, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.rhoc_plan_bytes.restype, library.rhoc_has.restype = number, flag
    fields, span = [address] * 5, [number, number]
    library.rhoc_linear.argtypes = [*fields, address, number, number, flag, address, address, flag, *span]
    library.rhoc_rows.argtypes = [*fields, address, address, flag, *span]
    library.rhoc_linear.restype = library.rhoc_rows.restype = None
    assert library.rhoc_plan_bytes() == ctypes.sizeof(_Layout)
    return library


def _functions() -> ctypes.CDLL:
    library = _library()
    assert not isinstance(library, str), "a weight was refused"
    return library
