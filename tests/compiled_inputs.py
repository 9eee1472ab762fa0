"""What kernels on inputs use of a multiprocessor: launches are compiled for devices that are not here.

Needs Triton and no device; the argument is a folder for the machine code. A launch of a kernel becomes its
compilation, with the arguments that it was launched with. A line each: kernel, case, generation, registers,
bytes on the stack, whether tensor cores multiply, and instructions in the longest loop.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from rhoc.runtime.kernels import Call, Kernel
from rhoc.runtime.kernels.gpu import (
    cache_attention,
    coded_launch,
    coded_linear,
    fp8_linear,
    grouped_linear,
    quantize_input,
)
from rhoc.runtime.kernels.gpu.cache_attention import PackedCacheAttention
from rhoc.runtime.kernels.gpu.embedding import PackedEmbedding
from rhoc.runtime.kernels.gpu.fp8_linear import Fp8Linear
from rhoc.runtime.kernels.gpu.grouped_linear import GroupedLinear
from rhoc.runtime.kernels.gpu.hadamard import enter_rows, rotation_plan, rows_of
from rhoc.runtime.kernels.gpu.int8_linear import Int8Linear
from rhoc.runtime.kernels.gpu.norm_enter import FusedNormEnter
from rhoc.runtime.kernels.neighbours import Norm
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize
from rhoc.runtime.training_kernels import triton_launch

_KINDS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
PROCESSORS = 132
_FILLING = (coded_linear, grouped_linear, cache_attention)


@dataclass
class Compiled:
    """Kernels of the launches in a block, as machine code by name."""

    generation: int
    found: list[tuple[str, Any]] = field(default_factory=list)

    def launched(self, kernel: Any, *given: Any, grid: Any, warmup: bool, **known: Any) -> None:
        """In the place of `JITFunction.run`."""
        known |= dict(zip(kernel.arg_names, given, strict=False))
        options = {name: known.pop(name) for name in _OPTIONS if name in known}
        signature, constants, aligned = {}, {}, []
        for place, name in enumerate(kernel.arg_names):
            value = known[name]
            signature[name] = kind_of(name, value)
            if signature[name] == "constexpr":
                constants[name] = value
            elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                aligned.append(place)
        attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", self.generation, 32)
        self.found.append((kernel.fn.__name__, triton.compile(source, target=target, options=options)))


def kind_of(name: str, value: Any) -> str:
    """The type of an argument; Triton makes constants of ones."""
    if isinstance(value, Tensor):
        return _KINDS[value.dtype]
    if name.isupper() or (type(value) is int and value == 1):
        return "constexpr"
    return "i32" if isinstance(value, int) else "fp32"


@contextmanager
def compiling(generation: int) -> Iterator[Compiled]:
    """Launches in this block are compiled, for a device with 132 multiprocessors of a generation."""
    found = Compiled(generation)
    form = "float8" if generation >= 89 else "half"
    with ExitStack() as stack:
        for place, name, value in (
            (JITFunction, "run", lambda kernel, *given, **known: found.launched(kernel, *given, **known)),
            (coded_launch, "processors", lambda device: PROCESSORS),
            *((module, "processors", lambda device: PROCESSORS) for module in _FILLING),
            (grouped_linear, "float8_form", lambda device: form),
            (fp8_linear, "float8_form", lambda device: form),
            (triton_launch, "_processors", lambda device: PROCESSORS),
            (quantize_input, "projection_refusal", lambda *given: ""),
        ):
            stack.enter_context(patch.object(place, name, value))
        yield found


def usage(code: Any, folder: Path) -> str:
    """Registers, stack, tensor cores, and the instructions of the longest loop."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(code.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    printed = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    line = next(line for line in printed.splitlines() if "REG:" in line)
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", line))
    cores = "tensor-cores" if "mma" in code.asm["ptx"] else "no-tensor-cores"
    return f"{numbers['REG']} {numbers['STACK']} {numbers['LOCAL']} {cores} {longest_loop(cubin)}"


def longest_loop(cubin: Path) -> int:
    """Instructions from the target of a backward branch to the branch, of the longest without another in it."""
    tool = triton.knobs.nvidia.nvdisasm.path
    printed = subprocess.run([tool, "-c", cubin], check=True, capture_output=True, text=True).stdout
    places: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    count = 0
    for line in printed.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            places[label[1]] = count
        if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
            count += 1
            branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if branch and branch[1] in places:
                loops.append((places[branch[1]], count))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max((last - first for first, last in inner), default=0)


def printed(name: str, case: Callable[[], object], generations: tuple[int, ...], folder: Path) -> None:
    """The lines of one case."""
    for generation in generations:
        with compiling(generation) as found:
            case()
        for kernel, code in found.found:
            print(kernel, name, generation, usage(code, folder), flush=True)


BFLOAT16 = torch.bfloat16
A8, FP8 = Quantize(8, strategy="token"), Quantize(8, "float", strategy="token")
A8_HALVES = Quantize(8, strategy="token", grid="midrise", observer="rms")
FP8_GROUPS = Quantize(8, "float", strategy="group", group_size=128)
MXFP8 = Quantize(8, "float", strategy="group", group_size=32, observer="mx")
MXFP4 = Quantize(4, "float", strategy="group", group_size=32, observer="mx")
W8, W4 = Quantize(8, strategy="channel"), Quantize(4, strategy="group", group_size=128)
W4_ZEROS = Quantize(4, strategy="group", group_size=128, symmetric=False)
W2 = Quantize(2, strategy="channel", grid="midrise", observer="rms")
W8_HALVES = Quantize(8, strategy="channel", grid="midrise", observer="rms")
W_FP8 = Quantize(8, "float", strategy="channel")
W_BLOCKS = Quantize(8, "float", strategy="block", block_structure=(128, 128), scale_dtype="float32")


def linear(kernel: Kernel, weight: Quantize, entering: Quantize, rows: int, block: int = 0) -> None:
    """A layer [4096, 4096]."""
    rotation = Representation((Hadamard(block),) if block else ())
    inputs = Representation((*rotation.stages, entering))
    core = Representation((weight,)).core
    call = Call("input_linear", core, (4096, 4096), BFLOAT16, "cuda", input=inputs, rotation=rotation)
    assert kernel.refuse(call) is None
    x = torch.zeros(rows, 4096, dtype=BFLOAT16)
    kernel.run(call, x, stored(core, (4096, 4096)), None)


def stored(core: Representation, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Fields for a tensor of this shape, all zeros."""
    layout = core.layout(shape, BFLOAT16).items()
    dtypes = {name: torch.uint8 if field.packed else field.dtype for name, field in layout}
    return {name: torch.zeros(field.stored_shape, dtype=dtypes[name]) for name, field in layout}


def norm(entering: Quantize | None, size: int, block: int | str) -> None:
    """The norm of rows, rotated and rounded."""
    rotation = Representation((Hadamard(block),))  # type: ignore[arg-type]
    projection = Representation((*rotation.stages, entering)) if entering else Representation()
    kind = Norm("rms_norm", (size,), 1e-6)
    call = Call("norm_enter", projection, (size,), BFLOAT16, "cuda", norm=kind, rotation=rotation)
    x, weight = torch.zeros(64, size, dtype=BFLOAT16), torch.ones(size, dtype=BFLOAT16)
    FusedNormEnter().run(call, x, {"weight": weight}, None)


def turned(size: int, block: int | str, dtype: torch.dtype) -> None:
    """A rotation alone."""
    plan = rotation_plan(Representation((Hadamard(block),)))  # type: ignore[arg-type]
    assert not isinstance(plan, str)
    rows = rows_of(plan, size, False)
    assert not isinstance(rows, str)
    enter_rows(torch.zeros(64, size, dtype=dtype), rows)


def lookup(weight: Quantize) -> None:
    """Rows of a table [1000, 768]."""
    core = Representation((weight,)).core
    call = Call("embedding", core, (1000, 768), BFLOAT16, "cuda")
    PackedEmbedding().run(call, torch.zeros(8, dtype=torch.int64), stored(core, (1000, 768)), None)


def experts(weight: Quantize, entering: Quantize | None, rows: int) -> None:
    """Eight experts [1024, 2048]."""
    core, shape = Representation((weight,)).core, (8, 1024, 2048)
    inputs = Representation((entering,) if entering else ())
    call = Call("grouped_linear", core, shape, BFLOAT16, "cuda", input=inputs)
    fields = stored(core, shape) | {"offsets": torch.zeros(8, dtype=torch.int32)}
    GroupedLinear().run(call, torch.zeros(rows, 2048, dtype=BFLOAT16), fields, None)


def attention(stage: Quantize) -> None:
    """Eight heads of 128 features, four times as many of queries, 2048 slots."""
    core = Representation((stage,)).core
    call = Call("cache_attention", core, (8, 128), BFLOAT16, "cuda")
    fields = stored(core, (1, 8, 2048, 1, 128)).items()
    both = {f"{kind}.{name}": tensor for kind in ("keys", "values") for name, tensor in fields}
    both["positions"] = torch.zeros(1, 1, dtype=torch.int64)
    PackedCacheAttention().run(call, torch.zeros(1, 32, 1, 128, dtype=BFLOAT16), both, None)


BYTES, FLOATS = Int8Linear(), Fp8Linear()
FIRST: dict[str, Callable[[], object]] = {
    "w8a8-1": lambda: linear(BYTES, W8, A8, 1),
    "w4a8-1": lambda: linear(BYTES, W4, A8, 1),
    "w4a8-16": lambda: linear(BYTES, W4, A8, 16),
    "fp8-100": lambda: linear(FLOATS, W_FP8, FP8, 100),
}
"""A few, which take seconds."""

MORE: dict[str, Callable[[], object]] = {
    "w8a8-16": lambda: linear(BYTES, W8, A8, 16),
    "w8a8-256": lambda: linear(BYTES, W8, A8, 256),
    "w4a8-256": lambda: linear(BYTES, W4, A8, 256),
    "w4a8-zeros-1": lambda: linear(BYTES, W4_ZEROS, A8, 1),
    "w4a8-zeros-16": lambda: linear(BYTES, W4_ZEROS, A8, 16),
    "w2a8-1": lambda: linear(BYTES, W2, A8, 1),
    "w2a8-16": lambda: linear(BYTES, W2, A8, 16),
    "w8a8-halves-16": lambda: linear(BYTES, W8_HALVES, A8_HALVES, 16, 128),
    "mxfp4-16": lambda: linear(BYTES, MXFP4, MXFP4, 16),
    "fp8-16": lambda: linear(FLOATS, W_FP8, FP8, 16),
    "fp8-blocks-16": lambda: linear(FLOATS, W_BLOCKS, FP8_GROUPS, 16),
    "fp8-blocks-256": lambda: linear(FLOATS, W_BLOCKS, FP8_GROUPS, 256),
    "mxfp8-16": lambda: linear(FLOATS, MXFP8, MXFP8, 16),
    "norm-4096": lambda: norm(A8, 4096, 128),
    "norm-mxfp8": lambda: norm(MXFP8, 4096, 128),
    "norm-full": lambda: norm(None, 4096, "full"),
    "turned-128": lambda: turned(14336, 128, BFLOAT16),
    "turned-8192": lambda: turned(8192, "full", BFLOAT16),
    "turned-float32": lambda: turned(4096, 128, torch.float32),
    "rows-int8": lambda: lookup(W8),
    "rows-int3": lambda: lookup(Quantize(3, strategy="group", group_size=64)),
    "experts-int4": lambda: experts(W4, None, 64),
    "experts-int4-many": lambda: experts(W4, None, 4096),
    "experts-int4-zeros": lambda: experts(Quantize(4, strategy="channel", symmetric=False), None, 64),
    "experts-w4a8": lambda: experts(W4, A8, 64),
    "experts-nf4": lambda: experts(
        Quantize(4, "float", grid="nf4", strategy="group", group_size=64), None, 64
    ),
    "cache-int8": lambda: attention(A8),
    "cache-int4": lambda: attention(Quantize(4, strategy="group", group_size=32)),
    "cache-int4-zeros": lambda: attention(Quantize(4, strategy="group", group_size=32, symmetric=False)),
    "cache-fp8": lambda: attention(FP8),
}

if __name__ == "__main__":
    folder, *generations = sys.argv[1:]
    asked = FIRST if generations == ["90"] else FIRST | MORE
    for name, case in asked.items():
        printed(name, case, tuple(map(int, generations)), Path(folder))
