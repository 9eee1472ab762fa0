"""Triton kernels on inputs, lookups, experts and caches: refusals, interpreted, compiled for devices that are
not here, and on CUDA itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rhoc.runtime.kernels import Call, Kernel, select
from rhoc.runtime.kernels.gpu.cache_attention import PackedCacheAttention
from rhoc.runtime.kernels.gpu.coded_launch import cut_for
from rhoc.runtime.kernels.gpu.embedding import PackedEmbedding
from rhoc.runtime.kernels.gpu.fp8_linear import Fp8Linear
from rhoc.runtime.kernels.gpu.grouped_linear import GroupedLinear
from rhoc.runtime.kernels.gpu.hadamard_linear import HadamardLinear
from rhoc.runtime.kernels.gpu.int8_linear import Int8Linear
from rhoc.runtime.kernels.gpu.norm_enter import FusedNormEnter
from rhoc.runtime.kernels.neighbours import Norm
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify

from . import input_checks as checks
from .input_cases import A8, A8_HALVES, BFLOAT16, CASES, FLOAT32, FP8, MXFP8, W4_GROUPS, Case

HERE = Path(__file__).parent
TURN, INPUT = Representation((Hadamard(64),)), Representation((A8,))
W8 = Representation((Quantize(8, strategy="channel"),))
SPARSE = Representation((Sparsify(0.5), Quantize(4)))


def call(
    operation: str, weight: Representation = W8, shape: tuple[int, ...] = (40, 256), **more: Any
) -> Call:
    """A call on CUDA, of inputs that are rounded to bytes."""
    return Call(operation, weight.core, shape, BFLOAT16, "cuda", **({"input": INPUT} | more))


DENSE = Representation()
ZEROS = Representation((Quantize(4, strategy="channel", symmetric=False),))
GROUPS = Representation((Quantize(8, strategy="group", group_size=48),))
SHORT = Representation((Quantize(8, strategy="group", group_size=24),))
BOOK = Representation((Quantize(4, "float", grid="nf4", strategy="channel"),))
NORM = Norm("rms_norm", (256,), None)
CACHE = Representation((Quantize(8),))
HALVES_IN_GROUPS = Representation((replace(A8_HALVES, strategy="group", group_size=64),))
REFUSALS: tuple[tuple[Kernel, Call, str], ...] = (
    (Int8Linear(), call("input_linear", input=DENSE), "inputs are not on a grid"),
    (
        Int8Linear(),
        call("input_linear", shape=(2, 40, 256)),
        "the weight has shape [2, 40, 256], not a matrix's",
    ),
    (Int8Linear(), call("input_linear", SPARSE), "the matrix is sparse"),
    (Int8Linear(), call("input_linear", GROUPS), "groups of 48 are no multiple of 32"),
    (Int8Linear(), call("input_linear", BOOK), "its levels are not those of bytes"),
    (Int8Linear(), call("input_linear", input=Representation((FP8,))), "its levels are not e4m3 numbers"),
    (
        Int8Linear(),
        call("input_linear", shape=(8, 1 << 18)),
        "sums of 262144 products of bytes do not fit 32 bits",
    ),
    (
        Int8Linear(),
        call("input_linear", rotation=TURN),
        "inputs are rounded as quantize(int8, twos, token, absmax, static), and then rotated by hadamard(64)",
    ),
    (
        Int8Linear(),
        call("input_linear", input=HALVES_IN_GROUPS),
        f"inputs of {HALVES_IN_GROUPS.core} are half more than a byte, in groups",
    ),
    (Fp8Linear(), call("input_linear"), "inputs are no e4m3 numbers"),
    (Fp8Linear(), call("input_linear", ZEROS, input=Representation((MXFP8,))), "it has zero points"),
    (HadamardLinear(), call("input_linear", rotation=TURN), "inputs are on a grid"),
    (
        HadamardLinear(),
        call("input_linear", input=DENSE, rotation=Representation((Hadamard(20),))),
        "the block of hadamard(20) is not a power of two",
    ),
    (FusedNormEnter(), call("norm_enter", DENSE, (256,), norm=NORM), "nothing is prepared"),
    (FusedNormEnter(), call("norm_enter", W8, (4, 256), norm=NORM), "the norm is over 2 dimensions"),
    (FusedNormEnter(), call("norm_enter", CACHE, (256,), norm=NORM), "all rows share a scale"),
    (
        FusedNormEnter(),
        call("norm_enter", DENSE, (1 << 16,), norm=NORM, rotation=TURN),
        "rows of 65536 are longer than 32768",
    ),
    (PackedEmbedding(), call("embedding", SPARSE), "the matrix is sparse"),
    (GroupedLinear(), call("grouped_linear"), "the weight has shape [40, 256], not that of experts"),
    (
        GroupedLinear(),
        call("grouped_linear", SHORT, (2, 40, 256)),
        "groups of 24 are no multiple of 16",
    ),
    (PackedCacheAttention(), call("cache_attention", DENSE, (2, 64)), "keys and values are not coded"),
    (
        PackedCacheAttention(),
        call("cache_attention", W8, (2, 512)),
        "heads of 512 features are wider than 256",
    ),
    (
        PackedCacheAttention(),
        call("cache_attention", CACHE, (2, 64)),
        "tokens do not have scales of their own",
    ),
)


@pytest.mark.parametrize(("kernel", "asked", "reason"), REFUSALS, ids=lambda value: str(value)[:60])
def test_kernels_say_why_they_refuse(kernel: Kernel, asked: Call, reason: str) -> None:
    pytest.importorskip("triton")
    assert kernel.refuse(asked) == reason
    assert kernel.devices == ("cuda",)
    other = "inputs are float64, not float32, float16 or bfloat16"
    assert kernel.refuse(replace(asked, dtype=torch.float64)) == other


def test_rotated_inputs_take_the_kernel_of_the_linear() -> None:
    pytest.importorskip("triton")
    asked = call("input_linear", Representation((W4_GROUPS,)), input=DENSE, rotation=TURN)
    assert select(asked).kernel.name == "gpu_hadamard_linear"


def test_cuts_fill_the_device_and_fit_the_groups() -> None:
    assert cut_for(1, 4096, 4096, 4096, 1, 132).splits == 4  # 64 tiles, 264 programs wanted
    assert cut_for(1, 4096, 4096, 4096, 1, 1).splits == 1
    assert cut_for(256, 4096, 4096, 4096, 1, 132).splits == 2  # 64 tiles
    assert cut_for(512, 4096, 4096, 4096, 1, 132).splits == 1
    for group, per, block in ((64, 2, 64), (96, 1, 32), (128, 2, 128), (4096, 2, 256)):
        assert cut_for(16, 4096, 4096, group, per, 132).block_k == block


def child(arguments: list[str], **variables: str) -> str:
    """What another Python prints on both its streams; its failure is ours."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**kept, **variables}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_the_kernels_interpreted() -> None:
    pytest.importorskip("triton")
    file = str(HERE / "interpreted_inputs.py")
    printed = child(
        ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", file],
        TRITON_INTERPRET="1",
        RHOC_NATIVE="0",
    )
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None, printed
    assert int(passed[1]) >= len(CASES) + 100, printed


SPILLED = {"turned-float32": 144}
"""Bytes that are known to spill; elsewhere a frame may have eight."""


def assert_fits(printed: str) -> dict[tuple[str, str, int], int]:
    """Instructions of loops by kernel, case and generation."""
    loops = {}
    for line in printed.splitlines():
        kernel, name, generation, registers, stack, local, *_, loop = line.split()
        assert int(registers) <= 255, line
        assert int(stack) <= SPILLED.get(name, 8), line
        assert int(local) == 0, line
        loops[kernel, name, int(generation)] = int(loop)
    return loops


def compiled(folder: Path, *generations: str) -> str:
    return child(
        ["-W", "ignore", str(HERE / "compiled_inputs.py"), str(folder), *generations],
        TRITON_CACHE_DIR=str(folder),
    )


WEIGHTS = {"w8a8-1": 64, "w4a8-1": 128, "w2a8-1": 256, "w8a8-16": 64, "w4a8-16": 64, "w2a8-16": 256}
"""For each thread in an iteration: numbers of a tile over threads."""


def test_hopper_code_keeps_to_its_registers(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    loops = assert_fits(compiled(tmp_path, "90"))
    assert loops["one_row", "w8a8-1", 90] / WEIGHTS["w8a8-1"] <= 0.8
    assert loops["one_row", "w4a8-1", 90] / WEIGHTS["w4a8-1"] <= 1.6
    assert loops["product", "w4a8-16", 90] / WEIGHTS["w4a8-16"] <= 2.2


@pytest.mark.slow
def test_code_of_three_generations_keeps_to_its_registers(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    loops = assert_fits(compiled(tmp_path, "80", "90", "100"))
    for generation in (80, 90, 100):
        assert loops["one_row", "w2a8-1", generation] / WEIGHTS["w2a8-1"] <= 1.4
        assert loops["product", "w2a8-16", generation] / WEIGHTS["w2a8-16"] <= 1.5
        assert loops["product", "w8a8-16", generation] / WEIGHTS["w8a8-16"] <= 1.4


# On CUDA itself.

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ON_CUDA: tuple[tuple[Callable[..., None], tuple[Any, ...]], ...] = (
    *((checks.check_product, (case,)) for case in CASES),
    *((checks.check_parts, (case,)) for case in checks.PARTS),
    *((checks.check_codes, (s, b, d)) for s in checks.ROUNDED for b in (0, 128) for d in DTYPES),
    (checks.check_layouts, ()),
    (checks.check_gradients, ()),
    *((checks.check_norm, (case, dtype)) for case in checks.ENTERED for dtype in DTYPES),
    *((checks.check_rotation, (*turned, dtype)) for turned in checks.TURNED for dtype in DTYPES),
    *((checks.check_lookup, (stage, dtype)) for stage in checks.ROWS for dtype in DTYPES),
    *((checks.check_experts, case) for case in checks.GROUPED),
    (checks.check_packed_experts, ()),
    *((checks.check_attention, (stage, dtype)) for stage in checks.CACHED for dtype in (FLOAT32, BFLOAT16)),
)


@pytest.mark.gpu
@pytest.mark.parametrize(("check", "given"), ON_CUDA, ids=lambda value: getattr(value, "__name__", None))
def test_on_cuda(check: Callable[..., None], given: tuple[Any, ...]) -> None:
    check(*given, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 128, 1024])
def test_fp8_and_bytes_of_a_layer_on_cuda(rows: int) -> None:
    """Sizes that torch's own products take."""
    for stage, entering in ((W8.stages[0], A8), (Quantize(8, "float", strategy="channel"), FP8)):
        assert isinstance(stage, Quantize)
        checks.check_product(Case(stage, entering, BFLOAT16, rows, 256, 512), "cuda")
