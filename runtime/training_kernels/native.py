"""The fused projection on a CPU: vectorised C++, compiled for the machine it runs on at the first use.

RHOC_NATIVE=0 in the environment switches it off.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..native.build import Library, loaded
from ..native.threads import shared_out
from ..stages.hadamard import fixed_signs
from .plan import Plan

_HEADERS = ("plan", "vectors", "rotation", "scales", "sparsity", "rounding")
SOURCES = Library(
    "projection", Path(__file__).parent, "native.cpp", tuple(f"native_{name}.h" for name in _HEADERS)
)
_CHUNK = 1 << 16  # numbers of a tensor that are measured together, whatever the number of threads
_SHARING = ("row", "group", "tensor", "none")
_STATISTICS = ("absmax", "signed", "rms", "absmean", "power")
_STORED = ("float32", "float16", "bfloat16", "e8m0")
_ROUNDING = ("nearest", "floor", "float", "table", "none")
_SAME = (
    *("kept", "of", "multiplier", "divisor", "power_border", "power_offset", "power_from_border", "unit"),
    *("lowest", "highest", "shift", "mantissa_bits", "least", "top", "half_width"),
)
_PARTIAL = 16  # bytes
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class _Layout(ctypes.Structure):
    """`Plan` of native.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("size", "block", "group", "chunk")],
        ("signs", ctypes.c_void_p),
        *[(name, ctypes.c_int32) for name in ("kept", "of", "sharing", "statistic", "stored", "rounding")],
        *[(name, ctypes.c_int32) for name in ("keep_rotated", "bfloat", "power_offset", "power_from_border")],
        *[(name, ctypes.c_int32) for name in ("mantissa_bits", "few")],
        *[(name, ctypes.c_float) for name in ("multiplier", "divisor", "power_border")],
        *[(name, ctypes.c_float) for name in ("scale_least", "scale_most", "unit", "lowest", "highest")],
        *[(name, ctypes.c_float) for name in ("shift", "least", "top", "half_width", "trust", "bound")],
        *[(name, ctypes.c_float * 16) for name in ("levels", "borders")],
    ]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A plan as C++ reads it, for rows of one size and dtype."""

    layout: _Layout
    signs: Tensor | None  # kept alive

    @property
    def address(self) -> int:
        return ctypes.addressof(self.layout)


def refusal(plan: Plan, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """Why a tensor is not taken; '' when it is. The first call that asks for a CPU compiles the kernel."""
    if device.type != "cpu":
        return f"the device is {device.type}, and it needs cpu"
    if dtype not in _DTYPES:
        return f"numbers are {str(dtype).removeprefix('torch.')}, not float32 or bfloat16"
    if not shape:
        return "a single number has no rows"
    size = int(shape[-1])
    if not size:
        return "there are no numbers"
    if plan.block and plan.block_for(size) < 2:
        return f"a dimension of {size} cannot be rotated"
    if plan.of and size % plan.of:
        return f"{plan.kept}:{plan.of} does not divide {size}"
    library = _library()
    return library if isinstance(library, str) else ""


def project(x: Tensor, plan: Plan, keep_rotated: bool, want_mask: bool) -> tuple[Tensor, Tensor]:
    """The projection of `x` `[..., n]`, contiguous, and its mask; see the contract of a kernel module."""
    library, prepared = _functions(), laid_out(plan, x.shape[-1], x.dtype, keep_rotated)
    rows, out = x.numel() // x.shape[-1], torch.empty_like(x)
    if want_mask and plan.masks:
        mask = torch.empty(rows, (x.shape[-1] + 7) // 8, dtype=torch.uint8)
        bits = mask.data_ptr()
    else:
        mask, bits = torch.empty(0, dtype=torch.uint8), None
    partials, chunks, of_tensor = None, 0, None
    if plan.sharing == "tensor":
        of_tensor, chunks = _measured(library, prepared, x, rows)
        partials = of_tensor.data_ptr()
    address, source, target = prepared.address, x.data_ptr(), out.data_ptr()

    def work(first: int, last: int) -> None:
        library.rhoc_project(address, source, target, bits, rows, first, last, partials, chunks)

    shared_out(work, rows, x.numel())
    return out, mask


def backward(grad: Tensor, mask: Tensor, plan: Plan, keep_rotated: bool) -> Tensor:
    """P^T (M * P grad), P left out with `keep_rotated`, for the mask of `project`; `grad` is contiguous.

    Computed in float32 throughout and rounded to the dtype of `grad` once. An empty mask passes everything.
    """
    if not mask.numel() and not (keep_rotated and plan.block):
        return grad
    library, prepared = _functions(), laid_out(plan, grad.shape[-1], grad.dtype, keep_rotated)
    rows, out = grad.numel() // grad.shape[-1], torch.empty_like(grad)
    bits = mask.data_ptr() if mask.numel() else None
    address, source, target = prepared.address, grad.data_ptr(), out.data_ptr()

    def work(first: int, last: int) -> None:
        library.rhoc_backward(address, source, target, bits, first, last)

    shared_out(work, rows, grad.numel())
    return out


def _measured(library: ctypes.CDLL, prepared: Prepared, x: Tensor, rows: int) -> tuple[Tensor, int]:
    """What the scale of the whole tensor follows from, chunk by chunk of its rows."""
    chunks = -(-rows // prepared.layout.chunk)
    partials = torch.empty(chunks * _PARTIAL, dtype=torch.uint8)
    address, source, target = prepared.address, x.data_ptr(), partials.data_ptr()

    def work(first: int, last: int) -> None:
        library.rhoc_measure(address, source, rows, first, last, target)

    shared_out(work, chunks, x.numel())
    return partials, chunks


@lru_cache(maxsize=1024)
def laid_out(plan: Plan, size: int, dtype: torch.dtype, keep_rotated: bool) -> Prepared:
    """The plan as C++ reads it, for rows of `size` numbers of a dtype."""
    stored = _DTYPES[dtype] if plan.scale_dtype == "own" else plan.scale_dtype
    info = torch.finfo(getattr(torch, stored)) if stored != "e8m0" else torch.finfo(torch.float32)
    signs = None if plan.signs is None else fixed_signs(plan.signs, size, torch.float32, torch.device("cpu"))
    layout = _Layout(
        size=size,
        block=plan.block_for(size),
        group=plan.group_size * plan.of // plan.kept if plan.of else plan.group_size,
        chunk=max(1, _CHUNK // size),
        signs=None if signs is None else signs.data_ptr(),
        sharing=_SHARING.index(plan.sharing),
        statistic=_STATISTICS.index(plan.statistic) if plan.statistic != "none" else 0,
        stored=_STORED.index(stored),
        rounding=_ROUNDING.index(plan.rounding),
        keep_rotated=keep_rotated,
        bfloat=dtype == torch.bfloat16,
        few=len(plan.levels),
        scale_least=info.tiny * info.eps if stored == "float16" else info.tiny,
        scale_most=info.max,
        trust=plan.trust or math.inf,
        bound=plan.bound or math.inf,
        levels=_sixteen(plan.levels, plan.levels[-1] if plan.levels else 0.0),
        borders=_sixteen(plan.borders, math.inf),
        **{name: getattr(plan, name) for name in _SAME},
    )
    return Prepared(layout, signs)


def _sixteen(values: tuple[float, ...], rest: float) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * 16)(*values, *[rest] * (16 - len(values)))


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    return bound(SOURCES)


def bound(sources: Library) -> ctypes.CDLL | str:
    """The functions of sources, compiled and with the types of their arguments; or why there are none."""
    library = loaded(sources)
    if isinstance(library, str):
        return library
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.rhoc_plan_bytes.restype = number
    library.rhoc_measure.argtypes = [address, address, number, number, number, address]
    library.rhoc_project.argtypes = [address, address, address, address, *[number] * 3, address, number]
    library.rhoc_backward.argtypes = [address, address, address, address, number, number]
    for function in (library.rhoc_measure, library.rhoc_project, library.rhoc_backward):
        function.restype = None
    assert library.rhoc_plan_bytes() == ctypes.sizeof(_Layout)
    return library


def _functions() -> ctypes.CDLL:
    library = _library()
    assert not isinstance(library, str), "a tensor was refused"
    return library
