"""Prints what kernels of the weight-only linear use of a GPU, as JSON, a line for each: no device is needed.

They are compiled for an architecture, disassembled, and the instructions of the loop over K are counted for
each weight that a thread turns into a number there. Arguments: a folder for machine code, architectures,
and --quick for a few of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rhoc.compiler.spec import shipped_weights
from rhoc.runtime.kernels.gpu import linear_triton
from rhoc.runtime.kernels.gpu.linear_launch import (
    few_constants,
    few_format,
    few_options,
    few_sizes,
    tile_constants,
    tile_format,
    tile_options,
    tile_sizes,
)
from rhoc.runtime.kernels.gpu.linear_plan import few as few_plan
from rhoc.runtime.kernels.gpu.linear_plan import tile as tile_plan
from rhoc.runtime.kernels.gpu.reading import OPERANDS, Reading, codes_of, reading
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

SHAPES = ((4096, 4096), (28672, 8192))
PROCESSORS = {80: 108, 90: 132, 100: 148}
_ALIGNED = ("N", "K", "x_row", "word_row", "scale_row")


@dataclass(frozen=True)
class Usage:
    """A kernel as compiled: registers and spilled bytes of a thread, shared bytes, what the loop has."""

    name: str
    rows: int
    architecture: int
    registers: int
    spilled: int
    shared: int
    instructions: int
    per_weight: float
    most: Mapping[str, int]


def few_usage(
    name: str,
    core: Representation,
    shape: tuple[int, int],
    rows: int,
    architecture: int,
    folder: Path,
    **changes: int,
) -> Usage:
    """The usage of `few` for an input of few rows in bfloat16."""
    matrix, operand = _matrix(core, shape), OPERANDS[torch.bfloat16]
    read, codes = reading(matrix, False), codes_of(matrix, operand)
    assert codes is not None
    weight = few_format(codes, read)
    plan = few_plan(rows, shape, weight, PROCESSORS[architecture])
    plan = type(plan)(**(asdict(plan) | changes))
    constants = few_constants(codes, operand, read, weight.per_unit, plain=False) | few_sizes(plan, rows)
    weights = plan.batches * plan.block_k * plan.block_n // (32 * plan.warps)
    compiled = _compiled(linear_triton.few, constants, read, rows, architecture, few_options(plan))
    return _usage(name, rows, architecture, compiled, weights, folder)


def tile_usage(
    name: str,
    core: Representation,
    shape: tuple[int, int],
    rows: int,
    architecture: int,
    folder: Path,
    **changes: int,
) -> Usage:
    """The usage of `tile` for an input in bfloat16."""
    matrix, operand = _matrix(core, shape), OPERANDS[torch.bfloat16]
    read, codes = reading(matrix, False), codes_of(matrix, operand)
    assert codes is not None
    plan = tile_plan(rows, tile_format(codes, read), architecture)
    plan = type(plan)(**(asdict(plan) | changes))
    constants = tile_constants(codes, operand, read, plan.block_k, architecture, plain=False)
    constants |= tile_sizes(plan)
    weights = plan.block_k * plan.block_n // (32 * plan.warps)
    compiled = _compiled(linear_triton.tile, constants, read, rows, architecture, tile_options(plan))
    return _usage(name, rows, architecture, compiled, weights, folder)


def _matrix(core: Representation, shape: tuple[int, int]) -> StoredMatrix:
    matrix = stored_matrix(core, shape)
    assert isinstance(matrix, StoredMatrix), matrix
    return matrix


def _compiled(
    kernel: Any,
    constants: dict[str, Any],
    read: Reading,
    rows: int,
    architecture: int,
    options: dict[str, Any],
) -> Any:
    constants.pop("unit")
    constants |= {"HAS_BIAS": False, "ACTIVATION": "", "EVEN": True}
    for name, value in (("M", rows), ("scale_row", read.scale_row), ("scale_rows", read.scale_rows)):
        if value == 1:
            constants[name] = 1  # Triton makes constants of ones
    pointers = dict.fromkeys(("x", "bias", "out", "scales"), "*bf16") | {"words": "*i32"}
    pointers |= dict.fromkeys(("scale_table", "numbers", "factor"), "*fp32") | {"zeros": "*u8"}
    if read.scale not in ("", "float"):
        pointers["scales"] = "*u8"
    if read.zero_bits == 0:
        pointers["zeros"] = "*bf16"
    kinds = dict.fromkeys(kernel.arg_names, "i32") | pointers | {"multiplier": "fp32"}
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {name: kinds[name] for name in kernel.arg_names}
    aligned = [
        place
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or (name in _ALIGNED and signature[name] == "i32")
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options=options | {"enable_fp_fusion": True},
    )


def _usage(name: str, rows: int, architecture: int, compiled: Any, weights: int, folder: Path) -> Usage:
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tools = Path(triton.knobs.nvidia.cuobjdump.path).parent
    used = _printed(tools / "cuobjdump", "-res-usage", cubin)
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", used))
    loop = main_loop(_printed(tools / "nvdisasm", "-c", cubin))
    names = Counter(re.sub(r"^@\S+\s+", "", line).split()[0].split(".")[0] for line in loop)
    return Usage(
        name,
        rows,
        architecture,
        int(found["REG"]),
        int(found["STACK"]) + int(found["LOCAL"]),
        compiled.metadata.shared,
        len(loop),
        round(len(loop) / weights, 2),
        dict(names.most_common(8)),
    )


def _printed(tool: Path, *arguments: str | Path) -> str:
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


def main_loop(listing: str) -> list[str]:
    """The instructions between a label and the branch back to it that has matrix products between."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in listing.splitlines():
        if label := re.match(r"\s*\.(L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        if found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(found[1].strip())
            branch = re.search(r"BRA.*`\(\.(L_x_\d+)\)", found[1])
            if branch and branch[1] in labels:
                loops.append(instructions[labels[branch[1]] :])
    return max((loop for loop in loops if any("MMA" in line for line in loop)), key=len)


def representation(name: str) -> Representation:
    """A shipped format's weights, or int4 in groups of 32."""
    if name == "int4-g32":
        return Representation((Quantize(4, strategy="group", group_size=32),)).core
    chain = shipped_weights(name)
    assert chain is not None
    return chain.core


FORMATS = (
    "int4",
    "int4-g128",
    "int4-g128-asym",
    "int2",
    "int2-g64",
    "binary",
    "ternary",
    "int3-g128",
    "int8",
)
OTHERS = ("int5", "int6", "int7", "mxfp4", "nvfp4", "mxfp8", "mxfp6", "fp8", "nf4", "lloyd2", "int4-g32")
QUICK = (
    ("int4-g128", 1),
    ("int4-g128-asym", 16),
    ("int2", 8),
    ("int2-g64", 16),
    ("int4-g32", 16),
    ("nvfp4", 16),
)


def main() -> None:
    """Every format in both regimes, or with --quick two of them."""
    folder, quick = Path(sys.argv[1]), "--quick" in sys.argv
    for architecture in (int(argument) for argument in sys.argv[2:] if argument != "--quick"):
        for usage in _quick(architecture, folder) if quick else _every(architecture, folder):
            print(json.dumps(asdict(usage)))


def _quick(architecture: int, folder: Path) -> Iterator[Usage]:
    for name, rows in QUICK:
        yield few_usage(name, representation(name), SHAPES[0], rows, architecture, folder)
    yield tile_usage("int4-g128", representation("int4-g128"), SHAPES[0], 64, architecture, folder)


def _every(architecture: int, folder: Path) -> Iterator[Usage]:
    for name in (*FORMATS, *OTHERS):
        for shape, rows in product(SHAPES, (1, 8, 16)):
            yield few_usage(name, representation(name), shape, rows, architecture, folder)
        for rows in (32, 64, 256) if name in FORMATS else ():
            yield tile_usage(name, representation(name), SHAPES[0], rows, architecture, folder)


if __name__ == "__main__":
    main()
