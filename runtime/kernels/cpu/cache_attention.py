"""Attention over a packed cache on a CPU, in C++ that reads the stored keys and values as they are.

Blocks of slots are decoded into the first cache and multiplied from there with all queries of a head; the
softmax goes along with the blocks (cache_attention.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from ...native.build import Library, loaded
from ...native.threads import shared_out
from ...stage import CARRY
from ...stages.precision import cast
from ..base import Call, Kernel
from ..cache_attention import DecodeCacheAttention, token_matrix
from ..composed import named
from ..stored import StoredMatrix
from .matrix import padded, plan_of

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
    "cache_attention",
    "cache_slots",
)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FLAGS = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic")
SOURCES = Library(
    "cache_attention",
    Path(__file__).parent,
    "cache_attention.cpp",
    tuple(f"{name}.h" for name in _HEADERS),
    _FLAGS,
)


class _Attention(ctypes.Structure):
    """`Attention` of cache_attention.h."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("queries", "positions", "out")],
        *[(name, ctypes.c_int64) for name in ("heads", "rows", "tokens", "slots", "features", "stride")],
        *[(name, ctypes.c_int64) for name in ("sequence_apart", "head_apart")],
        ("root", ctypes.c_float),
        ("bfloat", ctypes.c_int32),
    ]


class CpuCacheAttention(Kernel):
    """Keys and values of scalar codes under scales of tokens or of groups of features.

    Queries of float32 and float16 are multiplied in float32, those of bfloat16 as they are.
    """

    name: ClassVar[str] = "cpu_cache_attention"
    operation: ClassVar[str] = "cache_attention"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def refuse(self, call: Call) -> str | None:
        if call.dtype not in _DTYPES:
            return f"inputs are {str(call.dtype).removeprefix('torch.')}, not float32, bfloat16 or float16"
        matrix = token_matrix(call)
        if isinstance(matrix, str):
            return matrix
        library = _library()
        return library if isinstance(library, str) else None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        if not self.takes(x):
            return DecodeCacheAttention().run(call, x, stored, bias)
        keys, values = named(stored, "keys"), named(stored, "values")
        return Stored(call, keys, values).attended(x, stored["positions"], keys[CARRY].shape[2])

    def takes(self, x: Tensor) -> bool:
        """Whether C++ attends for these queries; for others, and for gradients, `run` decodes blocks."""
        return bool(x.numel()) and not (x.requires_grad and torch.is_grad_enabled())


@final
class Stored:
    """Keys and values `[B, H, S, ...]` and where C++ finds them, for the queries of all tokens of a cache,
    which is written to meanwhile."""

    def __init__(self, call: Call, keys: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        names = _names(call)
        fields, apart = _rows([side[name] if name else None for side in (keys, values) for name in names])
        self._fields = fields  # kept alive
        self._plan = _plan(call, *(field.dtype if field is not None else None for field in fields[1:3]))
        addresses = (None if field is None else field.data_ptr() for field in fields)
        self._given = self._plan.data_ptr(), (ctypes.c_void_p * 6)(*addresses)
        sequences, heads, slots = keys[CARRY].shape[:3]
        self._apart, self._heads = apart, heads
        self._reach = (sequences - 1) * apart[0] + (heads - 1) * apart[1] + slots

    def attended(self, x: Tensor, positions: Tensor, slots: int) -> Tensor:
        """Attention of queries `[B, G H, t, D]` at `positions` `[B, t]` over the first `slots` slots."""
        library, (sequences, queries_heads, tokens, features), heads = _functions(), x.shape, self._heads
        rows, bfloat = queries_heads // heads * tokens, x.dtype == torch.bfloat16
        pairs = bfloat and _has_pairs()
        queries = padded((x if pairs else x.float()).reshape(-1, features))
        positions = positions.long().contiguous()
        out = torch.empty(x.shape, dtype=torch.bfloat16 if bfloat else torch.float32)
        of = _Attention(
            *(queries.data_ptr(), positions.data_ptr(), out.data_ptr()),
            *(heads, rows, tokens, slots, features, queries.shape[1]),
            *self._apart,
            features**-0.5,
            bfloat,
        )
        plan, addresses = self._given
        given = (ctypes.addressof(of), plan, addresses, self._reach, pairs)

        def work(first: int, last: int) -> None:
            library.rhoc_cache_attention(*given, first, last)

        units = sequences * heads * -(-rows // _rows_of_unit())
        shared_out(work, units, 2 * sequences * heads * rows * slots * features)
        return cast(out, x.dtype)


def _rows(fields: list[Tensor | None]) -> tuple[list[Tensor | None], tuple[int, int]]:
    """Fields `[B, H, S, ...]` so that slots of a head lie one after the other, and in all alike; slots from
    those of one sequence, and of one head, to those of the next."""
    found = {_apart(field) for field in fields if field is not None}
    if len(found) == 1 and (apart := found.pop()) is not None:
        return fields, apart
    whole = [None if field is None else field.contiguous() for field in fields]
    assert whole[0] is not None
    heads, slots = whole[0].shape[1:3]
    return whole, (heads * slots, slots)


def _apart(field: Tensor) -> tuple[int, int] | None:
    """Slots from those of one sequence, and of one head, to those of the next, where slots are in a row."""
    sizes, steps = field.shape, field.stride()
    row = 1
    for size, step in zip(reversed(sizes[3:]), reversed(steps[3:]), strict=True):
        if size > 1 and step != row:
            return None
        row *= size
    if steps[2] != row or steps[0] % row or steps[1] % row:
        return None
    return steps[0] // row, steps[1] // row


@lru_cache(maxsize=1024)
def _names(call: Call) -> tuple[str, str, str | None]:
    """The fields of codes, scales and zero points."""
    matrix = _matrix(call)
    assert matrix.scale is not None
    return CARRY, matrix.scale.name, None if matrix.zero is None else matrix.zero.name


@lru_cache(maxsize=1024)
def _plan(call: Call, scale: torch.dtype | None, zero: torch.dtype | None) -> Tensor:
    return plan_of(_matrix(call), scale, zero, zeros_in_rows=True)


def _matrix(call: Call) -> StoredMatrix:
    matrix = token_matrix(call)
    assert isinstance(matrix, StoredMatrix), "the call was refused"
    return matrix


def _has_pairs() -> bool:
    return bool(_functions().rhoc_pairs())


def _rows_of_unit() -> int:
    found: int = _functions().rhoc_rows_of_unit()
    return found


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    return bound(SOURCES)


def bound(sources: Library) -> ctypes.CDLL | str:
    """The functions of a library, with what they take and return, or why there are none."""
    found = loaded(sources)
    if isinstance(found, str):
        return found
    address, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    found.rhoc_attention_bytes.restype = found.rhoc_rows_of_unit.restype = number
    found.rhoc_cache_attention.argtypes = [*[address] * 3, number, flag, number, number]
    found.rhoc_cache_attention.restype = None
    assert found.rhoc_attention_bytes() == ctypes.sizeof(_Attention)
    return found


def _functions() -> ctypes.CDLL:
    found = _library()
    assert not isinstance(found, str), "the call was refused"
    return found
