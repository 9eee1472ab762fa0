"""Sizes for few rows by Triton's search, where RHOC_AUTOTUNE=1 asks for it: half a minute for a new call."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import triton

from .linear_plan import registers
from .linear_triton import few

_WARPS, _COLUMNS, _STAGES = (4, 8, 16), (32, 64), (2, 3, 4)
_BLOCK_K = 128


def tuned_few(block_k: int, columns: int) -> tuple[Any, Any, int]:
    """The kernel that searches for batches of `block_k`, its grid for `columns`, and the widest block of K.

    The search leaves K to the warps of one program.
    """
    return _tuned(block_k), lambda sizes: (-(-columns // sizes["BLOCK_N"]), 1), _WARPS[-1] * _BLOCK_K


@lru_cache(maxsize=8)
def _tuned(block_k: int) -> Any:
    configurations = [
        triton.Config(
            {"BATCHES": warps * max(1, _BLOCK_K // block_k), "BLOCK_N": columns, "STAGES": stages},
            num_warps=warps,
            num_stages=stages,
            maxnreg=registers(warps),
        )
        for warps, columns, stages in product(_WARPS, _COLUMNS, _STAGES)
    ]
    return triton.autotune(configs=configurations, key=["M", "N", "K", "BITS"])(few)
