"""Prints what the int_linear kernel uses of a Hopper multiprocessor, a line for each plan.

Needs Triton and no device; the argument is a folder for the machine code.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rhoc.runtime.kernels.gpu.int_linear import plan
from rhoc.runtime.kernels.gpu.int_linear_triton import linear

PLANNED = (("bf16", 4, None, 1), ("bf16", 4, 128, 256), ("fp16", 1, 32, 1), ("fp32", 8, None, 33))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def hopper_usage(dtype: str, bits: int, group: int | None, rows: int, folder: Path) -> str:
    """The line of cuobjdump on what the kernel uses, as planned for `rows` and compiled for sm_90."""
    cut = plan(rows, (4096, 4096), group, DTYPES[dtype], 132)
    word = 32 if cut.block_k * bits >= 128 else 8
    constants = {
        "BITS": bits,
        "PER": word // bits,
        "OFFSET": -7.5,
        "GROUP_BLOCKS": (group or 0) // cut.block_k,
        "HAS_BIAS": True,
        "EVEN_K": True,
        "FLOAT32": dtype == "fp32",
        "BLOCK_M": cut.block_m,
        "BLOCK_N": cut.block_n,
        "BLOCK_K": cut.block_k,
        **({"M": 1} if rows == 1 else {}),  # Triton makes constants of ones
        **({"scale_row": 1} if group is None else {}),
    }
    words = "*i32" if word == 32 else "*u8"
    pointers = dict.fromkeys(("x", "scale", "bias", "out"), f"*{dtype}") | {"words": words}
    sizes = ("M", "N", "K", "x_row", "word_row", "scale_row", "blocks_each")
    kinds = pointers | dict.fromkeys(sizes, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=linear,
        signature={name: kinds[name] for name in linear.arg_names},
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in range(10)},
    )
    options = {"num_warps": cut.warps, "num_stages": cut.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    cubin = folder / "linear.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    printed = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    return next(line for line in printed.splitlines() if "REG:" in line)


if __name__ == "__main__":
    for planned in PLANNED:
        print(hopper_usage(*planned, folder=Path(sys.argv[1])))
