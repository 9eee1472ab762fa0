"""The fused projection of training on a GPU: rotation, sparsity, scale, grid and mask in one Triton kernel.

Numbers are read once and written once, beside one bit each for the mask. A Hadamard block is multiplied on
the tensor cores by a matrix of signs, exactly: operands are split into as many bfloat16 numbers as they need.
A scale of the whole tensor takes a kernel before, which measures.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ..interpreted import interpreted
from .plan import Plan
from .triton_cut import Cut, cut_of
from .triton_launch import TERMS, Given, capability, measuring, projecting, returning

_OLDEST, _HOPPER = (8, 0), (9, 0)
_IN_REGISTERS, _OF_LINES = 128, 64  # rows of a matrix, and lines beside it, that registers hold


def refusal(plan: Plan, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """Why this kernel does not take a tensor; '' when it does."""
    if device.type != "cuda" and not interpreted():
        return f"the device is {device.type}, and it needs cuda"
    if not _installed():
        return "Triton is not installed"
    if dtype not in TERMS:
        return f"numbers are {str(dtype).removeprefix('torch.')}, not float32, float16 or bfloat16"
    if not shape:
        return "a single number has no rows"
    cut = cut_of(plan, shape[-1])
    if isinstance(cut, str) or device.type != "cuda":
        return cut if isinstance(cut, str) else ""
    return _too_old(cut, TERMS[dtype], capability(device))


def _too_old(cut: Cut, terms: int, found: tuple[int, int]) -> str:
    """Why a device cannot, '' when it can: before Hopper a matrix lies in registers, which it may fill."""
    if found < _OLDEST:
        return "the device has no bfloat16 tensor cores: its compute capability is below 8.0"
    full = cut.block * terms > _IN_REGISTERS or (cut.block == _IN_REGISTERS and cut.lines > _OF_LINES)
    if full and found < _HOPPER:
        return f"Hadamard blocks of {cut.block} take too many registers before compute capability 9.0"
    return ""


def project(x: Tensor, plan: Plan, keep_rotated: bool, want_mask: bool) -> tuple[Tensor, Tensor]:
    """The projection of `x` `[..., n]`, same shape and dtype, and the mask uint8 `[rows, ceil(n / 8)]`.

    `x` is contiguous and was not refused. Bit i % 8 of byte i // 8 is set where the gradient passes, in the
    rotated domain; the mask is empty where it passes everywhere or is not wanted. With `keep_rotated` the
    projection is not rotated back.
    """
    from .triton_kernels import measure, project  # imports Triton

    given, masks = Given.of(x), want_mask and plan.masks
    launch = projecting(plan, given, keep_rotated, masks)
    numbers = _readable(x)
    out = torch.empty_like(numbers)
    bits = x.new_empty((given.rows, -(-given.size // 8)) if masks else 0, dtype=torch.uint8)
    words = _words(bits, launch.arguments["PACK"])
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        partial = numbers
        if plan.sharing == "tensor":
            before = measuring(plan, given)
            partial = x.new_empty(before.programs, dtype=torch.float32)
            measure[(before.programs,)](numbers, partial, **before.arguments)
        project[(launch.programs,)](numbers, out, words, partial, **launch.arguments)
    return out.to(x.dtype), bits


def backward(grad: Tensor, mask: Tensor, plan: Plan, keep_rotated: bool) -> Tensor:
    """dL/dx `[..., n]` from dL/dR(x), contiguous, and the mask of `project`.

    Rotated (unless the projection was kept rotated), zero where no bit is, rotated back.
    """
    from .triton_kernels import backward  # imports Triton

    launch = returning(plan, Given.of(grad), keep_rotated, mask.numel() > 0)
    if launch is None:
        return grad
    numbers = _readable(grad)
    out = torch.empty_like(numbers)
    with torch.cuda.device_of(grad):  # type: ignore[no-untyped-call]
        backward[(launch.programs,)](numbers, out, _words(mask, launch.arguments["PACK"]), **launch.arguments)
    return out.to(grad.dtype)


def _readable(x: Tensor) -> Tensor:
    """The numbers as kernels read them.

    The interpreter multiplies the bit patterns of bfloat16 and cuts float32 off instead of rounding to it:
    there kernels see float32 from their loads to their stores, and round by hand in between.
    """
    return x.float() if interpreted() else x


def _words(bits: Tensor, pack: int) -> Tensor:
    """A mask in integers of `pack` bits."""
    return bits if pack == 8 or not bits.numel() else bits.view(torch.int32)


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None
