"""Prints what the fused projection uses of a multiprocessor, a line for each kernel and generation.

Needs Triton and no device; the argument is a folder for the machine code. With numbers after it those cases
of `projection_cases.py` are compiled instead: the interpreter lets much pass that the compiler does not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rhoc.runtime.training_kernels import triton_kernels, triton_launch
from rhoc.runtime.training_kernels.plan import Plan
from rhoc.runtime.training_kernels.triton_launch import Given, Launch

from .projection_cases import BFLOAT16, CASES, RMS, Case, Hadamard, chain

KINDS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def compiled(kernel: Any, launch: Launch, given: Given, generation: int) -> Any:
    """A kernel as it would be compiled for its launch on CUDA, whose pointers and sizes are aligned."""
    known, signature, constants, aligned = dict(launch.arguments), {}, {}, []
    options = {name: known.pop(name) for name in OPTIONS}
    numbers, word = KINDS[given.dtype], "*i32" if known.get("PACK") == 32 else "*u8"
    tensors = {"x": numbers, "grad": numbers, "out": numbers, "bits": word, "partial": "*fp32"}
    for place, name in enumerate(kernel.arg_names):
        value = known.get(name)
        if isinstance(value, torch.Tensor):
            tensors[name] = KINDS[value.dtype]
        if name in tensors:
            signature[name] = tensors[name]
        elif name.isupper() or (type(value) is int and value == 1):  # Triton makes constants of ones
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
        if name in tensors or (signature[name] == "i32" and value % 16 == 0):
            aligned.append(place)
    attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)


def kernels(plan: Plan, given: Given, keep_rotated: bool) -> dict[str, tuple[Any, Launch]]:
    """The kernels of a projection and its backward pass, and their launches."""
    found = {
        "project": (triton_kernels.project, triton_launch.projecting(plan, given, keep_rotated, plan.masks))
    }
    back = triton_launch.returning(plan, given, keep_rotated, plan.masks)
    if back is not None:
        found["backward"] = (triton_kernels.backward, back)
    if plan.sharing == "tensor":
        found["measure"] = (triton_kernels.measure, triton_launch.measuring(plan, given))
    return found


def usage(code: Any, folder: Path) -> str:
    """The line of cuobjdump on what a kernel uses."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(code.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    printed = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    return next(line for line in printed.splitlines() if "REG:" in line)


def compile_cases(numbers: list[int]) -> None:
    for case in (CASES[number] for number in numbers):
        given = Given.of(case.x)
        for name, (kernel, launch) in kernels(case.plan, given, keep_rotated=False).items():
            compiled(kernel, launch, given, 90)
            print(f"compiled {name} of {case}")


def print_usage(folder: Path) -> None:
    plan = Case(chain(Hadamard(128), RMS), (1, 128)).plan
    given = Given(8192, 4096, BFLOAT16, torch.device("cpu"))
    with patch.object(triton_launch, "_processors", lambda device: 132):
        for generation in (80, 90):
            for keep_rotated in (True, False):
                for name, (kernel, launch) in kernels(plan, given, keep_rotated).items():
                    code = compiled(kernel, launch, given, generation)
                    products = "tensor cores" if "mma" in code.asm["ptx"] else "no tensor cores"
                    print(generation, keep_rotated, name, products, usage(code, folder))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    compile_cases(numbers) if numbers else print_usage(Path(sys.argv[1]))
