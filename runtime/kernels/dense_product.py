"""Products with a decoded weight, in the dtype in which this processor multiplies the soonest.

Where a processor has no instructions for a half precision, torch multiplies it many times more slowly than
float32: on Zen 4 without AVX-512, bfloat16 takes 1.6, 2 and 4 times as long at 8, 16 and 256 inputs. Numbers
of half precisions are numbers of float32 too, whose sums are rounded once, so nothing is lost by going there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW = 8  # inputs from which on float32 is faster, with a weight that is converted for it


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a product of inputs `[..., k]` is the fastest: what to decode a weight to for it."""
    slow = x.device.type == "cpu" and x.dtype in SLOW and x.numel() >= _FEW * x.shape[-1]
    return torch.float32 if slow else x.dtype


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in the dtype of `x` `[..., k]`, for a weight `[n, k]` and a bias of this dtype, or of
    `product_dtype(x)`."""
    dtype = product_dtype(x)
    if dtype == x.dtype:
        return F.linear(x, weight, bias)
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)


def _slow() -> frozenset[torch.dtype]:
    """Half precisions that torch's library for products, oneDNN, does not take on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset((torch.bfloat16, torch.float16))
    taken = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, is_taken in taken.items() if not is_taken)


SLOW = _slow()
"""Dtypes in which products on this processor take several times as long as in float32."""
