"""New tokens of a packed cache on a CPU: encoded by C++ into their slots, where the stage takes many steps.

What is stored is equal to the bit to what `Representation.encode` and `pack` give.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from ...native.build import Library, loaded
from ...native.threads import shared_out
from ...packing import packed_length
from ...representation import Representation
from ...stage import CARRY
from ...stages.grids.integer import IntegerGrid
from ...stages.grids.nearest import borders
from ...stages.grids.table import TableGrid
from ...stages.quantize import Quantize
from ...stages.quantize_options import absmax_level
from ...stages.scales import Floating

SOURCES = Library("cache_store", Path(__file__).parent, "cache_store.cpp")
_NEAREST, _FLOOR, _TABLE = range(3)
_STORED = (torch.float32, torch.float16, torch.bfloat16)
_BORDERS, _CODES = 255, 256
_SCALE, _ZERO = "0.scale", "0.zero_point"
_OPTIONS = ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "scale_dtype", "grid")
_KNOWN = {*_OPTIONS, "absmax_rule"}  # that may differ from their defaults


class _Encoding(ctypes.Structure):
    """`Encoding` of cache_store.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("features", "group", "groups", "code_bytes", "zero_bytes")],
        *[(name, ctypes.c_int32) for name in ("bits", "rounding", "symmetric", "stored", "borders")],
        *[(name, ctypes.c_float) for name in ("divisor", "least", "most", "lowest", "highest")],
        ("border", ctypes.c_float * _BORDERS),
        ("code", ctypes.c_uint8 * _CODES),
    ]


class _Slots(ctypes.Structure):
    """`Slots` of cache_store.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("heads", "slots")],
        *[(name, ctypes.c_void_p) for name in ("codes", "zeros", "scales")],
    ]


@final
class Storing:
    """Writes tokens to slots of keys or of values: the fields `[B, H, S, ...]`, each contiguous, of a
    representation of tokens `[B, H, S, 1, D]` of a dtype. Made by `storing`."""

    def __init__(self, encoding: _Encoding, fields: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        codes, zeros = fields[CARRY], fields.get(_ZERO)
        self._heads, self._slots = codes.shape[1:3]
        self._dtype, self._features, self._sequences = dtype, encoding.features, len(codes)
        self._kept = (
            encoding,
            _Slots(
                self._heads,
                self._slots,
                codes.data_ptr(),
                None if zeros is None else zeros.data_ptr(),
                fields[_SCALE].data_ptr(),
            ),
        )
        self._given = (*map(ctypes.addressof, self._kept), dtype == torch.bfloat16)
        self._fields = fields

    def store(self, x: Tensor, positions: Tensor | None, first: int) -> bool:
        """Write tokens `[B, H, t, D]` to the slots `[B, t]`, or without these from slot `first` on.

        False where it cannot: a number that is not finite, a slot that is not there, or another kind of
        tensor. Slots of these tokens may have been written to then.
        """
        sequences, heads, count, features = x.shape
        if (sequences, heads, features) != (self._sequences, self._heads, self._features):
            return False
        if x.dtype != self._dtype or not x.is_cpu or (x.requires_grad and torch.is_grad_enabled()):
            return False
        x = x.float() if x.dtype == torch.float16 else x
        strides = x.stride()
        if strides[3] != 1:
            x = x.contiguous()
            strides = x.stride()
        if positions is not None:
            positions = positions.long().contiguous()
        at = None if positions is None else positions.data_ptr()
        given = (*self._given, x.data_ptr(), *strides[:3], at, count, first)
        run, stored = _functions().rhoc_cache_store, []

        def work(low: int, high: int) -> None:
            stored.append(run(*given, low, high))

        shared_out(work, sequences * heads, x.numel())
        return all(stored)


def storing(
    representation: Representation, fields: Mapping[str, Tensor], features: int, dtype: torch.dtype
) -> Storing | str:
    """What writes tokens of D `features` into these fields, or why nothing here does."""
    if any(not field.is_cpu or not field.is_contiguous() for field in fields.values()):
        return "the cache is not on a processor, slot by slot"
    encoding = _encoding(representation, features, dtype)
    return encoding if isinstance(encoding, str) else Storing(encoding, fields, dtype)


@lru_cache(maxsize=64)
def _encoding(representation: Representation, features: int, dtype: torch.dtype) -> _Encoding | str:
    stages = representation.bound_stages
    if dtype not in _STORED:
        return f"numbers are {str(dtype).removeprefix('torch.')}, not float32, bfloat16 or float16"
    if len(stages) != 1 or not isinstance(stages[0], Quantize):
        return f"{representation} is not one quantize stage"
    stage = stages[0]
    refused = _refusal(stage, dtype)
    if refused is not None:
        return refused
    functions = _library()
    return functions if isinstance(functions, str) else _laid_out(stage, features, dtype)


def _refusal(stage: Quantize, dtype: torch.dtype) -> str | None:
    default = Quantize()
    for name in stage.__dataclass_fields__:
        if name not in _KNOWN and getattr(stage, name) != getattr(default, name):
            return f"{name} of {stage} is not known"
    if stage.strategy not in ("token", "channel", "group"):
        return f"scales of strategy {stage.strategy} are not of a token"
    if not isinstance(stage.storage, Floating) or stage.storage.signed:
        return f"scales of {stage} are not plain floats"
    if _scale_dtype(stage, dtype) not in _STORED:
        return f"scales are stored as {stage.scale_dtype}"
    if not isinstance(stage.levels, IntegerGrid | TableGrid):
        return f"{stage.levels} is no known grid"
    return None


def _scale_dtype(stage: Quantize, dtype: torch.dtype) -> torch.dtype:
    found: torch.dtype = dtype if stage.scale_dtype is None else getattr(torch, stage.scale_dtype)
    return found


def _laid_out(stage: Quantize, features: int, dtype: torch.dtype) -> _Encoding:
    grid = stage.levels
    group = min(stage.group_size or features, features)
    groups = -(-features // group)
    scales = _scale_dtype(stage, dtype)
    ends = stage.storage.store(torch.tensor([0.0, torch.inf]), dtype)["scale"].float()
    found = _Encoding(
        features,
        group,
        groups,
        packed_length(features, stage.num_bits),
        packed_length(groups, stage.num_bits),
        bits=stage.num_bits,
        rounding=_NEAREST,
        symmetric=stage.symmetric,
        stored=_STORED.index(scales),
        divisor=absmax_level(stage, grid) if stage.symmetric else grid.levels[-1],
        least=float(ends[0]),
        most=float(ends[1]),
    )
    if isinstance(grid, TableGrid):
        between = borders(grid.levels, grid.level_codes, torch.float32).tolist()
        found.rounding, found.borders = _TABLE, len(between)
        found.border[: len(between)] = between
        found.code[: len(grid.level_codes)] = grid.level_codes
        return found
    shift = grid.levels[0] % 1
    found.rounding = _FLOOR if shift else _NEAREST
    found.lowest, found.highest = grid.levels[0] - shift, grid.levels[-1] - shift
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
    found.rhoc_encoding_bytes.restype = found.rhoc_slots_bytes.restype = number
    found.rhoc_cache_store.argtypes = [address, address, flag, address, *[number] * 3, address, *[number] * 4]
    found.rhoc_cache_store.restype = flag
    assert found.rhoc_encoding_bytes() == ctypes.sizeof(_Encoding)
    assert found.rhoc_slots_bytes() == ctypes.sizeof(_Slots)
    return found


def _functions() -> ctypes.CDLL:
    found = _library()
    assert not isinstance(found, str), "the representation was refused"
    return found
