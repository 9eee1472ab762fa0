"""The weight-only linear of CUDA: its machine text, its sizes, what it refuses, interpreted, compiled, on CUDA."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rhoc.runtime.kernels import select
from rhoc.runtime.kernels.gpu.code_kinds import (
    BFLOAT16,
    FLOAT16,
    Codes,
    Float,
    Line,
    Operand,
    Table,
    float_format,
)
from rhoc.runtime.kernels.gpu.linear import TritonLinear
from rhoc.runtime.kernels.gpu.linear_plan import Format, Tile, few, tile
from rhoc.runtime.kernels.gpu.reading import codes_of
from rhoc.runtime.kernels.gpu.unpacking import neighbours, unpacking
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix
from rhoc.runtime.packing import pack
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize, Sparsify

from .kernel_cases import BFLOAT16 as BFLOAT
from .kernel_cases import CASES, Case, assert_close_to_exact, problem
from .kernel_cases import FLOAT16 as FLOAT
from .matrix_cases import FORMATS, format_problem
from .ptx_machine import as_floats, run
from .test_stored_matrix import CHAINS

HERE = Path(__file__).parent
OPERANDS = pytest.mark.parametrize("operand", [BFLOAT16, FLOAT16], ids=lambda operand: operand.name)

# Machine text, instruction by instruction.

FLOATS = {
    "e2m1": (Float(4, 1, 1), [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
    "e1m2": (Float(4, 2, 1), [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]),
    "e3m2": (
        Float(6, 2, 3),
        [n / 16 * 2.0 ** max(e - 1, 0) + (e > 0) * 2.0**e / 8 for e in range(8) for n in range(4)],
    ),
    "e4m3": (
        Float(8, 3, 7),
        torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().tolist(),
    ),
    "e5m2": (Float(8, 2, 15), torch.arange(124, dtype=torch.uint8).view(torch.float8_e5m2).double().tolist()),
}


def unpacked(codes: Codes, operand: Operand, numbers: np.ndarray, *, exact: bool) -> torch.Tensor:
    """What the text makes of codes `[units, 2 P]`, less what it leaves to be subtracted, as levels."""
    made = unpacking(codes, operand, exact=exact)
    packed = pack(torch.from_numpy(numbers), codes.bits).numpy().view(np.uint32)
    assert packed.shape[1] == made.words
    found = torch.stack(
        [as_floats(x, operand.dtype) for x in run(made.text, made.constraints, *packed.T)], dim=1
    )
    return (found - torch.tensor(made.offsets * 2, dtype=torch.float64)) * made.unit


def some_codes(count: int, codes: Codes) -> np.ndarray:
    """Units of random codes below `count`, and of each code in every place."""
    per = 2 * unpacking(codes, BFLOAT16, exact=False).pairs
    seeded = np.random.default_rng(count).integers(0, count, size=(64, per), dtype=np.uint8)
    return np.concatenate([seeded, np.repeat(np.arange(count, dtype=np.uint8)[:, None], per, 1)])


@OPERANDS
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_lines(bits: int, operand: Operand) -> None:
    zero = 2.0 ** (bits - 1) - 0.5
    numbers = some_codes(1 << bits, Line(bits, zero))
    codes = torch.from_numpy(numbers).double()
    assert torch.equal(unpacked(Line(bits, zero), operand, numbers, exact=False), codes)
    assert torch.equal(unpacked(Line(bits, zero), operand, numbers, exact=True), codes - zero)


@OPERANDS
@pytest.mark.parametrize("name", FLOATS)
def test_codes_of_floats(name: str, operand: Operand) -> None:
    codes, levels = FLOATS[name]
    sign = 1 << (codes.bits - 1)
    numbers = some_codes(len(levels), codes)
    numbers[::2] |= sign
    table = np.array(levels)
    expected = torch.from_numpy(np.where(numbers & sign, -1, 1) * table[numbers & (sign - 1)])
    for exact in (False, True):
        assert torch.equal(unpacked(codes, operand, numbers, exact=exact), expected)
    known = torch.tensor([*levels, *[torch.inf] * (sign - len(levels))], dtype=torch.float64)
    assert float_format(codes.bits, tuple(torch.cat([known, -known]).tolist())) == codes


@OPERANDS
@pytest.mark.parametrize(("bits", "count"), [(2, 4), (3, 8), (4, 15), (4, 16), (2, 3)])
def test_codes_of_tables(bits: int, count: int, operand: Operand) -> None:
    levels = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(operand.dtype).double()
    codes = Table(bits, tuple(levels.tolist()))
    numbers = some_codes(count, codes)
    expected = levels[torch.from_numpy(numbers).long()]
    assert torch.equal(unpacked(codes, operand, numbers, exact=False), expected)


@OPERANDS
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_and_scales_of_units(bits: int, operand: Operand) -> None:
    made = unpacking(Line(bits, None), operand, exact=True, scaled=True)
    numbers = some_codes(1 << bits, Line(bits, None))
    zero, scale = 2.0 ** (bits - 1) + 0.3, 0.0123
    near = torch.tensor(zero).to(operand.dtype).double().item()
    given = [
        np.full(len(numbers), operand.bits(value) * 0x10001, dtype=np.uint32)
        for value in (-near, near - zero, scale)
    ]
    packed = pack(torch.from_numpy(numbers), bits).numpy().view(np.uint32)
    found = torch.stack(
        [as_floats(x, operand.dtype) for x in run(made.text, made.constraints, *packed.T, *given)], 1
    )
    expected = (torch.from_numpy(numbers).double() - zero) * torch.tensor(scale).to(operand.dtype).double()
    eps = torch.finfo(operand.dtype).eps
    assert ((found - expected).abs() <= 1.6 * eps * expected.abs() + eps / 100 * scale).all()


@OPERANDS
@pytest.mark.parametrize("name", ["1", "2", "4", "8", "e2m1", "e4m3", "table of 4", "table of 16"])
def test_pairs_leave_together_as_they_do_apart(name: str, operand: Operand) -> None:
    kinds = {"table of 4": Table(2, (-1.5, -0.5, 0.25, 2.0)), "table of 16": Table(4, (*range(-8, 8),))}
    codes = kinds.get(name) or (FLOATS[name][0] if name in FLOATS else Line(int(name), 0.5))
    apart, whole = (unpacking(codes, operand, exact=False, together=together) for together in (False, True))
    words = np.random.default_rng(0).integers(0, 1 << 32, 256, dtype=np.uint32)
    lanes = run(apart.text, apart.constraints, words)
    pairs = run(whole.text, whole.constraints, words)
    assert whole.offsets == apart.offsets
    assert len(pairs) == apart.pairs
    for j, pair in enumerate(pairs):
        assert np.array_equal(pair, lanes[j] | lanes[j + apart.pairs] << 16)


def test_neighbours_are_pairs() -> None:
    """Pair j has codes 2 j and 2 j + 1, and each lane depends on its own input alone."""
    codes = Line(2, 1.5)
    made = neighbours(codes, BFLOAT16)
    assert made is not None
    numbers = some_codes(4, codes)
    words = pack(torch.from_numpy(numbers), 2).numpy().view(np.uint32)[:, 0]
    right = words.view(np.int32) >> 1  # as Triton shifts
    pairs = run(made.text, made.constraints, words << 1, right.view(np.uint32))
    for j, (pair, offset) in enumerate(zip(pairs, made.offsets, strict=True)):
        lanes = as_floats(pair & 0xFFFF, torch.bfloat16), as_floats(pair >> 16, torch.bfloat16)
        for lane, found in enumerate(lanes):
            assert np.array_equal((found - offset).numpy(), numbers[:, 2 * j + lane])
    one, other = (run(made.text, made.constraints, *given) for given in ((words, ~words), (words, words)))
    assert all(np.array_equal(a & 0xFFFF, b & 0xFFFF) for a, b in zip(one, other, strict=True))
    for refused in (Line(4, 8.0), Table(2, (0.0, 1.0, 2.0, 3.0))):
        assert neighbours(refused, BFLOAT16) is None
    assert neighbours(codes, FLOAT16) is None  # whose offsets would be large


@OPERANDS
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_what_is_subtracted_is_exact(bits: int, operand: Operand) -> None:
    zero = 2.0 ** (bits - 1) - 0.5
    codes = Line(bits, zero)
    rows = np.arange(16, dtype=np.uint32)
    expected = -torch.tensor(unpacking(codes, operand, exact=False).offsets, dtype=torch.float64) - zero
    apart = unpacking(codes, operand, exact=False)
    found = run(apart.constants(operand, zero), "=h," * (2 * apart.pairs) + "r", rows)
    lanes = torch.stack([as_floats(x, operand.dtype) for x in found], 1)
    assert torch.equal(lanes, torch.cat([expected, expected]).expand(16, -1))
    beside = neighbours(codes, operand)
    for whole in (unpacking(codes, operand, exact=False, together=True), *([beside] if beside else [])):
        if whole.words > 1:
            continue
        pairs = run(whole.constants(operand, zero), "=r," * whole.pairs + "r,r", rows, rows)
        expected = -torch.tensor(whole.offsets, dtype=torch.float64) - zero
        for half in (0, 16):
            lanes = torch.stack([as_floats(x >> half & 0xFFFF, operand.dtype) for x in pairs], 1)
            assert torch.equal(lanes, expected.expand(16, -1))


@pytest.mark.parametrize("bits", range(1, 9))
def test_offsets_stay_small_and_repeat(bits: int) -> None:
    """What is lost again from a sum of products costs as many bits as it is larger than the codes.

    Those of a step of the product, which are held in registers for all steps, are few.
    """
    for operand, most in ((BFLOAT16, 128), (FLOAT16, max(32, 1 << bits))):
        offsets = unpacking(Line(bits, 0.5), operand, exact=False).offsets
        assert max(map(abs, offsets)) <= most
        assert len(set(offsets)) in (1, 2, 4)
        period = len(set(offsets))
        assert offsets == offsets[:period] * (len(offsets) // period)


def test_shipped_formats_have_machine_text() -> None:
    kinds = {}
    for name in FORMATS:
        matrix = stored_matrix(CHAINS[name].core, (64, 256))
        assert isinstance(matrix, StoredMatrix)
        kinds[name] = codes_of(matrix, BFLOAT16)
    assert None not in kinds.values()
    assert kinds["int4"] == Line(4, 8.0) or kinds["int4"] == Line(4, 7.5)
    assert kinds["mxfp4"] == Float(4, 1, 1)
    assert kinds["fp8"] == Float(8, 3, 7)
    assert isinstance(kinds["nf4"], Table)


# Sizes and refusals.


def test_sizes_fill_the_device_and_fit_the_groups() -> None:
    int4 = Format(4)
    few4096 = few(1, (4096, 4096), int4, 132)
    assert (few4096.block_n, few4096.warps, few4096.parts) == (32, 16, 1)  # 128 programs of 16 warps
    assert few(1, (28672, 8192), int4, 132).block_n == 64
    assert few(1, (512, 8192), int4, 132).parts == 2  # 16 programs for 132 multiprocessors, 4 blocks of K
    assert few(1, (512, 512), int4, 132).parts == 1  # too little of K to share
    assert few(16, (4096, 4096), int4, 132).block_m == 16
    for group, block in ((32, 32), (96, 32), (128, 128), (384, 128), (64, 64)):
        sizes = few(1, (64, 768), Format(4, group), 132)
        assert sizes.block_k == block
        assert sizes.batches * sizes.block_k >= 32 * sizes.warps
    for bits in range(1, 9):
        loads = few(16, (4096, 4096), Format(bits), 132)
        width = loads.batches * loads.block_k
        assert (loads.stages - 1) * width * (loads.block_n * bits // 8 + 32) <= 160 << 10  # of sm_80
    assert tile(33, int4, 90) == Tile(8, 128, 64, 128, 3)
    assert tile(300, Format(4, 128), 90).block_m == 128
    assert tile(300, Format(4, 128), 80).block_m == 64
    assert tile(300, Format(4, 128, own_zeros=True), 90).block_m == 64


REFUSALS = (
    (Case(), {"dtype": torch.float64}, "inputs are float64, not float32, float16 or bfloat16"),
    (Case(), {"shape": (2, 40, 96)}, "the weight has shape [2, 40, 96], not a matrix's"),
    (Case(), {"shape": (0, 96)}, "the weight has shape [0, 96], not a matrix's"),
    (
        Case(),
        {"representation": Representation((Sparsify(0.5), Quantize(4)))},
        "sparsify(0.5) >> quantize(int4, twos, tensor, absmax) is stored without its zeros",
    ),
    (
        Case(),
        {"representation": Representation(())},
        "dense is not one quantize stage, alone or after sparsify",
    ),
)


@pytest.mark.parametrize(
    ("case", "changes", "reason"), REFUSALS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_it_says_why_it_refuses(case: Case, changes: dict[str, object], reason: str) -> None:
    call = replace(case.call, device="cuda", **changes)
    assert TritonLinear().refuse(call) == reason
    assert TritonLinear().refuse(replace(call, device="cpu")) == "the device is cpu, and it needs cuda"


def test_it_takes_cuda_and_when_interpreted_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = replace(Case(dtype=BFLOAT).call, device="cuda")
    assert TritonLinear().refuse(cuda) is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert TritonLinear().refuse(Case().call) is None
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert TritonLinear().refuse(Case().call) == "the device is cpu, and it needs cuda"
    monkeypatch.setitem(sys.modules, "triton", None)
    assert TritonLinear().refuse(cuda) == "Triton is not installed"


# Without a device: interpreted, and compiled. Each in a process of its own, since Triton decides once.


def child(arguments: list[str], **variables: str) -> str:
    """What another Python prints on both its streams; its failure is ours."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=kept | variables, cwd=HERE.parent
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_the_kernels_interpreted() -> None:
    pytest.importorskip("triton")
    printed = child(
        ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "interpreted_linear.py")],
        TRITON_INTERPRET="1",
    )
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None, printed
    assert int(passed[1]) > len(FORMATS) + len(CASES) + 30, printed


# Instructions of the loop for a weight and thread, at most, for up to 8 rows and for 16.
MOST = {
    "binary": (1.5, 2.0),
    "int2": (1.7, 2.0),
    "ternary": (1.7, 2.0),
    "int2-g64": (1.9, 2.2),
    "int3-g128": (2.4, 2.8),
    "int4": (1.8, 2.3),
    "int4-g128": (2.0, 2.5),
    "int4-g128-asym": (2.3, 2.9),
    "int4-g32": (2.4, 3.2),
    "int5": (2.9, 3.4),
    "int6": (2.9, 3.4),
    "int7": (3.2, 3.6),
    "int8": (2.8, 3.4),
    "fp8": (3.2, 3.6),
    "mxfp8": (4.0, 4.6),
    "mxfp4": (4.0, 4.7),
    "mxfp6": (4.7, 5.2),
    "nvfp4": (4.6, 5.0),
    "lloyd2": (2.7, 3.0),
    "nf4": (5.5, 6.0),
}
TILED = {"int4": (7.5, 11.0), "int4-g128": (7.5, 7.5)}  # up to 64 rows and above, with work for each row


def check_usage(printed: str, lines: int) -> None:
    """Nothing is spilled, shared memory and registers suffice, and loops keep to their instructions."""
    usages = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert len(usages) == lines, printed
    for used in usages:
        assert used["spilled"] == 0, used
        assert used["registers"] <= 255, used
        assert used["shared"] <= 163 << 10, used
        if used["rows"] <= 16:
            assert used["per_weight"] <= MOST[used["name"]][used["rows"] > 8], used
        elif used["name"] in TILED:
            assert used["per_weight"] <= TILED[used["name"]][used["rows"] > 64], used


@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_code_keeps_to_registers_and_instructions(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    printed = child(
        ["-W", "ignore", "-m", "tests.gpu_usage", str(tmp_path), architecture, "--quick"],
        TRITON_CACHE_DIR=str(tmp_path),
    )
    check_usage(printed, 7)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_code_of_every_format(architecture: str, tmp_path: Path) -> None:
    printed = child(
        ["-W", "ignore", "-m", "tests.gpu_usage", str(tmp_path), architecture],
        TRITON_CACHE_DIR=str(tmp_path),
    )
    check_usage(printed, 6 * len(MOST) + 3 * 9)


# On CUDA itself.

GPU_CASES = (
    *CASES,
    *(
        Case(bits, dtype=BFLOAT, n=1000, k=4096, rows=rows)
        for bits in range(1, 9)
        for rows in (1, 16, 33, 300)
    ),
    *(
        Case(4, strategy="group", group=128, dtype=FLOAT, n=512, k=2048, rows=rows)
        for rows in (1, 20, 100, 600)
    ),
    *(Case(4, dtype=BFLOAT, n=33, k=136, rows=rows) for rows in (1, 2, 5, 8, 9, 17, 70)),
)


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_integers_on_cuda(case: Case) -> None:
    given = problem(case, "cuda")
    kernel = select(given.call).kernel
    assert kernel.name == "triton_linear"
    result = kernel.run(given.call, given.x, given.stored, given.bias)
    assert_close_to_exact(result, given)
    assert torch.equal(kernel.run(given.call, given.x, given.stored, given.bias), result)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT], ids=["bfloat16", "float16"])
def test_formats_on_cuda(name: str, dtype: torch.dtype) -> None:
    for rows in (1, 3, 16, 18, 70, 600):
        given = format_problem(name, dtype, rows, k=1024, device="cuda")
        assert_close_to_exact(TritonLinear().run(given.call, given.x, given.stored, given.bias), given)


@pytest.mark.gpu
def test_inputs_far_from_zero_on_cuda() -> None:
    """Offsets of numbers are lost from sums that are as large as they can be."""
    for name in ("int4", "int4-g128", "int2", "int3", "int8"):
        for dtype in (BFLOAT, FLOAT):
            given = format_problem(name, dtype, 4, k=4096, device="cuda")
            x = given.x + 3
            weight = given.call.representation.restore(
                given.call.representation.unpack(given.stored, given.call.shape, dtype)
            )
            exact = x.double() @ weight.double().T
            plain = torch.nn.functional.linear(x, weight.to(dtype))
            moved = replace(given, x=x, bias=None, exact=exact, plain=plain)
            assert_close_to_exact(TritonLinear().run(given.call, x, given.stored, None), moved)
