"""Compiles kernels of `tiled` formats for GPUs that are not there, and counts what their loops issue.

Needs Triton and no device. Counts are machine instructions of the longest loop by thread, over the weights
that a thread decodes in one turn of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rhoc.runtime.kernels import Call, select
from rhoc.runtime.kernels.gpu import low_rank_linear, tiled, tiled_triton
from rhoc.runtime.kernels.gpu.tiled import Coded

from .format_cases import core_of, stored_of
from .format_names import NAMES

KINDS = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int16: "i16",
    torch.uint8: "u8",
    torch.float8_e4m3fn: "fp8e4nv",
}


@dataclass(frozen=True)
class Usage:
    """What a kernel uses: registers of a thread, bytes spilled, instructions by weight, and what they are."""

    registers: int
    spilled: int
    instructions: float
    operations: Counter[str]


def compiled(kernel: Any, arguments: dict[str, Any], generation: int, warps: int, stages: int) -> Any:
    """A kernel for arguments: tensors and numbers as they are, aligned where tensors are; capitals are
    constants."""
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}

    def kind(value: Any, place: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(kind(each, (*place, i)) for i, each in enumerate(value))
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, Tensor) or value % 16 == 0:
            aligned[place] = [["tt.divisibility", 16]]
        return f"*{KINDS[value.dtype]}" if isinstance(value, Tensor) else "i32"

    for place, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if name.isupper():
            signature[name], constants[name] = "constexpr", value
        elif type(value) is int and value == 1:  # Triton makes constants of ones
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = kind(value, (place,))
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)


def tiled_usage(
    coded: Coded, dtype: torch.dtype, rows: int, generation: int, folder: Path, low: Coded | None = None
) -> Usage:
    """What the fused product uses with rows of a dtype."""
    cut = tiled.cut_of(coded, rows, dtype, 132)
    factor = low or coded
    x = torch.empty(64, dtype=dtype)
    arguments = {
        "x": x,
        "stored": coded.stored,
        "scale": coded.scale,
        "multiplier": 1.5,
        "low": x,
        "low_stored": factor.stored,
        "low_scale": factor.scale,
        "low_multiplier": 1.5,
        "rank": 64,
        "bias": x,
        "out": x if cut.parts == 1 else x.float(),
        "M": rows,
        "N": coded.shape[0],
        "K": coded.shape[1],
        "x_row": coded.shape[1],
        "part_blocks": 16,
        "HAS_BIAS": cut.parts == 1,
        "FLOAT32": dtype == torch.float32,
        **tiled.constants(coded, cut, rows, low),
    }
    code = compiled(tiled_triton.linear, arguments, generation, cut.warps, cut.stages)
    return usage(code, cut.block_n * coded.block_k * cut.batches / (32 * cut.warps), folder)


def usage(code: Any, weights: float, folder: Path) -> Usage:
    """What machine code uses; a thread has so many weights in a turn of the loop."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(code.asm["cubin"])
    nvidia = triton.knobs.nvidia
    printed = _printed([nvidia.cuobjdump.path, "-res-usage", str(cubin)])
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
    body = longest_loop(_printed([nvidia.nvdisasm.path, "-c", str(cubin)]))
    return Usage(
        used["REG"], used["STACK"] + used["LOCAL"], len(body) / weights, Counter(_operation(t) for t in body)
    )


def longest_loop(text: str) -> list[str]:
    """The instructions from the label that the farthest backward branch goes to, to that branch."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    longest: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1])
            branch = re.search(r"BRA.*?`\((\.L_x_\d+)\)", found[1])
            start = labels.get(branch[1]) if branch else None
            if start is not None and len(instructions) - start > len(longest):
                longest = instructions[start:]
    return longest


def _operation(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def _printed(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def decode_usage(coded: Coded, operand: torch.dtype, generation: int, folder: Path) -> Usage:
    """What writing the weight out uses; there is no loop."""
    arguments = {
        "stored": coded.stored,
        "scale": coded.scale,
        "multiplier": 1.5,
        "out": torch.empty(64),
        "N": coded.shape[0],
        "K": coded.shape[1],
        **tiled.decode_constants(coded, operand),
    }
    return usage(compiled(tiled_triton.decode, arguments, generation, warps=4, stages=3), 1.0, folder)


def row_usage(call: Call, stored: dict[str, Tensor], generation: int, folder: Path) -> Usage:
    """What the codebooks' product with one row uses."""
    from rhoc.runtime.kernels.gpu import codebook_linear as launcher
    from rhoc.runtime.kernels.gpu.codebook_linear_triton import gathered

    stage, x = launcher._stage(call), torch.empty(64, dtype=call.dtype)
    scale, shared = launcher._scales(stage, stored, call.shape, 1)
    constants = launcher.gathered_constants(stage, shared)
    ready = launcher.CodebookLinear().prepare(call, stored)
    vectors = call.shape[1] // stage.in_group_size
    arguments = {
        "x": x,
        "codes": stored["carry"].view(launcher._TOGETHER[stage.num_codebooks]),
        "points": ready[f"{launcher.COLUMNS}.{call.dtype}"],
        "scale": scale,
        "scale_table": scale,
        "bias": x,
        "out": x.float(),
        "multiplier": 1.5,
        "N": call.shape[0],
        "K": call.shape[1],
        "vectors_in_row": vectors,
        "code_row": vectors,
        "part_blocks": 16,
        "TOGETHER": True,
        "HAS_BIAS": False,
        "FLOAT32": call.dtype == torch.float32,
        **constants,
    }
    code = compiled(gathered, arguments, generation, warps=4, stages=2)
    return usage(code, constants["BLOCK_N"] * constants["BLOCK_V"] * stage.in_group_size / 128, folder)


def usage_of(name: str, generation: int, folder: Path) -> Usage:
    """What the kernel of that name uses."""
    wanted = NAMES[name]
    shape = (128, 4096)
    core = core_of(wanted.text)
    stored = stored_of(core, shape, wanted.dtype)
    call = Call("linear", core, shape, wanted.dtype, "cuda")
    if wanted.row:
        return row_usage(call, stored, generation, folder)
    kernel = select(call).kernel
    assert kernel.name == wanted.kernel
    assert isinstance(kernel, tiled.TiledLinear)
    fields = kernel.prepare(call, stored)
    if isinstance(kernel, low_rank_linear.LowRankLinear):
        _, left, rest = low_rank_linear._found(call)
        residual, factor = (low_rank_linear._coded(call, part, fields, wanted.dtype) for part in (rest, left))
        return tiled_usage(residual, wanted.dtype, wanted.rows, generation, folder, factor)
    if wanted.decode:
        operand = wanted.dtype if kernel.exact else torch.float32
        return decode_usage(kernel.coded(call, fields, operand), operand, generation, folder)
    coded = kernel.coded(call, fields, wanted.dtype)
    return tiled_usage(coded, wanted.dtype, wanted.rows, generation, folder)


def main(folder: Path, generations: list[int], names: list[str]) -> None:
    """Print a line for each kernel and generation."""
    for name in names or NAMES:
        for generation in generations:
            found = usage_of(name, generation, folder)
            most = ", ".join(f"{count} {operation}" for operation, count in found.operations.most_common(8))
            print(
                f"{name} sm_{generation}: {found.registers} registers, {found.spilled} spilled, "
                f"{found.instructions:.2f} instructions ({most})",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2].split(",")], sys.argv[3:])
