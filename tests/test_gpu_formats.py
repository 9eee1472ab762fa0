"""Sparse weights, codebooks, trellises and low rank on a GPU: interpreted, as machine text, compiled, and
on CUDA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from rhoc.runtime.codebooks import e8p as e8p_points
from rhoc.runtime.kernels import Call, select
from rhoc.runtime.kernels.gpu.code_kinds import BFLOAT16, FLOAT16, Line, Operand
from rhoc.runtime.kernels.gpu.codebook_linear import CodebookLinear, _sizes
from rhoc.runtime.kernels.gpu.e8p_text import e8p_text
from rhoc.runtime.kernels.gpu.low_rank_linear import LowRankLinear
from rhoc.runtime.kernels.gpu.sparse_linear import SparseLinear, _choices, starts_of
from rhoc.runtime.kernels.gpu.sparse_text import expanding
from rhoc.runtime.kernels.gpu.tiled import Coded, Cut, TiledLinear, cut_of
from rhoc.runtime.kernels.gpu.trellis_linear import TrellisLinear, _unit
from rhoc.runtime.kernels.gpu.trellis_text import trellis_text
from rhoc.runtime.kernels.gpu.unpacking import unpacking
from rhoc.runtime.stages import Trellis
from rhoc.runtime.trellises.codes import values

from .format_cases import CASES, SPARSE, TRELLIS, Case, assert_close_to_exact, core_of, problem
from .ptx_machine import as_floats, run

HERE = Path(__file__).parent
OPERANDS = pytest.mark.parametrize("operand", [BFLOAT16, FLOAT16], ids=lambda operand: operand.name)


# Machine text, instruction by instruction.


def positions() -> tuple[np.ndarray, np.ndarray]:
    """Random words of positions of eight groups of 2:4, and the positions `[words, 8, 2]`."""
    choices = np.array(list(combinations(range(4), 2)))
    chosen = choices[np.random.default_rng(0).integers(len(choices), size=(200, 8))]
    nibbles = chosen[..., 0] + 4 * chosen[..., 1]
    return (nibbles << (4 * np.arange(8))).sum(1).astype(np.uint32), chosen


def spread_out(chosen: np.ndarray, survivors: np.ndarray) -> np.ndarray:
    """Dense rows of 32 from positions and survivors `[words, 16]`, number by number."""
    dense = np.zeros((len(chosen), 8, 4), survivors.dtype)
    for word, group in product(range(len(chosen)), range(8)):
        dense[word, group, chosen[word, group]] = survivors[word, 2 * group : 2 * group + 2]
    return dense.reshape(len(chosen), 32)


def test_survivors_are_put_in_their_places() -> None:
    words, chosen = positions()
    survivors = np.random.default_rng(1).integers(1, 1 << 16, size=(200, 16))
    pairs = survivors.astype(np.uint32).reshape(200, 8, 2)
    text, constraints = expanding(0)
    found = run(text, constraints, *(pairs[:, i, 0] | pairs[:, i, 1] << 16 for i in range(8)), words)
    np.testing.assert_array_equal(np.stack(found, 1), spread_out(chosen, survivors))


@OPERANDS
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_become_survivors_in_their_places(bits: int, operand: Operand) -> None:
    words, chosen = positions()
    codes = np.random.default_rng(2).integers(0, 1 << bits, size=(200, 16))
    per = 32 // bits
    packed = (codes.reshape(200, -1, per) << (bits * np.arange(per))).sum(2).astype(np.uint32)
    zero = 2.0 ** (bits - 1) - 0.5
    made = unpacking(Line(bits, zero), operand, exact=True, together=True)
    pairs = [
        register
        for first in range(0, packed.shape[1], made.words)
        for register in run(made.text, made.constraints, *packed[:, first : first + made.words].T)
    ]
    text, constraints = expanding(made.pairs)
    found = torch.stack([as_floats(x, operand.dtype) for x in run(text, constraints, *pairs, words)], 1)
    expected = torch.from_numpy(spread_out(chosen, codes - zero))
    assert torch.equal(found, expected.to(operand.dtype).double())


@OPERANDS
def test_e8p_by_sizes_and_signs_is_its_table(operand: Operand) -> None:
    codes = np.arange(1 << 16, dtype=np.uint32)
    sizes = _sizes(torch.device("cpu")).numpy().view(np.uint32)[codes >> 8]
    found = torch.stack([as_floats(x, operand.dtype) for x in run(*e8p_text(operand), sizes, codes)], 1)
    assert torch.equal(found / 4, e8p_points.points().double())


@OPERANDS
@pytest.mark.parametrize("code", ["1mad", "3inst"])
def test_states_are_worked_out(code: str, operand: Operand) -> None:
    states = np.arange(1 << 16, dtype=np.uint32)
    first, second = run(*trellis_text(code, operand), states, states[::-1])
    expected = values(code, 2, 16).double()
    unit = _unit(Trellis(2, 16, code))
    assert (
        torch.equal(first, second[::-1]) if isinstance(first, torch.Tensor) else (first == second[::-1]).all()
    )
    eps = torch.finfo(operand.dtype).eps
    torch.testing.assert_close(as_floats(first, operand.dtype) * unit, expected, rtol=eps, atol=1e-6)


# What is prepared.


def test_ranks_are_the_choices_of_their_order() -> None:
    assert _choices(4, 2)[:6] == (0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100)
    assert len(_choices(8, 4)) == 128


@pytest.mark.parametrize("by_row", [True, False])
def test_starts_count_the_survivors_before(by_row: bool) -> None:
    mask = np.random.default_rng(0).integers(0, 2, size=(5, 700), dtype=np.uint8)
    packed = torch.from_numpy(np.packbits(mask, axis=1, bitorder="little"))
    expected = [
        [mask[r, :c].sum() + (0 if by_row else mask[:r].sum()) for c in range(0, 700, 128)] for r in range(5)
    ]
    assert starts_of(packed, 700, by_row=by_row).tolist() == expected


def test_prepared_fields_are_small() -> None:
    """A packed model's memory stays its stored bits: tables and counts, and no second copy of codes."""
    for text in ("sparsify(0.5) >> quantize(int4)", "sparsify(2:4) >> quantize(int4, channel)"):
        given = problem(Case(SPARSE, text, n=64, k=4096))
        made = SparseLinear().prepare(given.call, given.stored)
        added = sum(made[name].nbytes for name in made.keys() - given.stored.keys())
        assert added < 0.05 * 64 * 4096


# Refusals.

REFUSALS: tuple[tuple[TiledLinear, str, tuple[int, ...], str], ...] = (
    (SparseLinear(), "quantize(int4)", (8, 64), "quantize(int4, twos, tensor, absmax) is not sparse"),
    (SparseLinear(), "sparsify(0.5, sparsity_structure=row)", (8, 64), "keeps whole blocks or lines"),
    (SparseLinear(), "sparsify(0.5, storage=csr)", (8, 64), "stores places, and it needs a mask"),
    (SparseLinear(), "sparsify(64:128)", (8, 128), "64 places are stored for each group, more than 8"),
    (SparseLinear(), "sparsify(2:32)", (8, 128), "groups have 32 parts, more than 16"),
    (SparseLinear(), "sparsify(0.5) >> quantize(int4, group=32)", (8, 64), "groups of 32 survivors"),
    (SparseLinear(), "sparsify(2:4) >> quantize(int4, channel, asymmetric)", (8, 64), "zero points"),
    (CodebookLinear(), "quantize(int4)", (8, 64), "is not one codebook"),
    (CodebookLinear(), "codebook(3)", (8, 66), "vectors of 3 numbers have no units of bytes"),
    (
        CodebookLinear(),
        "codebook(8, source=e8p, nbits_per_codebook=16, num_codebooks=3)",
        (8, 64),
        "3 codebooks of e8p are added up, more than 2",
    ),
    (TrellisLinear(), "trellis(2)", (8, 68), "rows of 68 are not made of units of 16"),
    (TrellisLinear(), "quantize(int4)", (8, 64), "is not one trellis"),
    (TrellisLinear(), "trellis(2, strategy=group, group_size=24)", (8, 96), "hold no whole units of 16"),
    (LowRankLinear(), "quantize(int4) + quantize(int4)", (8, 64), "is not a product"),
    (LowRankLinear(), "product(4)", (8, 64), "is not a sum of two"),
    (
        LowRankLinear(),
        "product(4) + quantize(int4, group=32, asymmetric)",
        (8, 64),
        "has zero points or a pattern",
    ),
)


@pytest.mark.parametrize(
    ("kernel", "text", "shape", "reason"), REFUSALS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_kernels_say_why_they_refuse(
    kernel: TiledLinear, text: str, shape: tuple[int, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Call("linear", core_of(text), shape, torch.bfloat16, "cuda")
    refused = kernel.refuse(call)
    assert refused is not None
    assert reason in refused
    assert kernel.refuse(replace(call, device="cpu")) == "the device is cpu, and it needs cuda"
    assert "inputs are float64" in str(kernel.refuse(replace(call, dtype=torch.float64)))
    assert "not a matrix's" in str(kernel.refuse(replace(call, shape=(2, *shape))))
    monkeypatch.setitem(sys.modules, "triton", None)
    assert kernel.refuse(call) == "Triton is not installed"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calls_on_cuda_are_taken(case: Case) -> None:
    call = Call("linear", core_of(case.text), (case.n, case.k), case.dtype, "cuda")
    assert select(call).kernel.name == case.kernel


def test_cuts_fill_the_device() -> None:
    def coded(rows: int, columns: int) -> Coded:
        nothing = torch.empty(0)
        return Coded((rows, columns), None, (), (), 8, (nothing, nothing))

    def cut(rows: int, weight: Coded, processors: int = 132) -> Cut:
        return cut_of(weight, rows, torch.bfloat16, processors)

    assert cut(1, coded(4096, 4096)).parts == 2  # 128 tiles, 264 programs wanted
    assert cut(1, coded(64, 1024)).parts == 1  # too little of K to share
    assert cut(64, coded(4096, 4096)).parts == 1
    assert [cut(rows, coded(64, 64), 1).block_m for rows in (1, 9, 17, 200)] == [8, 16, 32, 64]
    assert cut_of(coded(64, 64), 200, torch.float32, 1).block_m == 16


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
        ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "interpreted_formats.py")],
        TRITON_INTERPRET="1",
    )
    assert re.search(rf"{len(CASES) + 14} passed", printed), printed


def check_usage(names: list[str], generations: str, folder: Path) -> None:
    """Nothing is spilled, registers suffice, and loops keep to their instructions."""
    printed = child(
        ["-W", "ignore", "-m", "tests.format_usage", str(folder), generations, *names],
        TRITON_CACHE_DIR=str(folder),
    )
    lines = [line for line in printed.splitlines() if " registers, " in line]
    assert len(lines) == len(generations.split(",")) * len(names), printed
    for line in lines:
        found = re.match(r"(\S+) sm_(\d+): (\d+) registers, (\d+) spilled, ([\d.]+) instructions", line)
        assert found is not None, line
        assert int(found[3]) <= 255, line
        assert found[4] == "0", line
        if found[1] in MOST and found[2] == "90":
            assert float(found[5]) <= MOST[found[1]], line


# Instructions for a weight and thread on sm_90, at most; `format_usage` says which kernels these are.
MOST = {
    "2of4-int4": 3.9,
    "2of4-int4-g64": 4.1,
    "2of4": 3.2,
    "2of4-int8": 4.2,
    "aqlm-1x8-row": 0.8,
    "aqlm-2x8-row": 1.7,
    "higgs2-row": 1.4,
    "higgs2": 4.2,
    "e8p": 5.6,
    "1mad": 7.9,
    "3inst": 7.9,
    "qtip2-l12": 5.6,
}
QUICK = ["2of4-int4", "aqlm-1x8-row", "e8p", "1mad"]


def test_code_for_hopper_keeps_to_registers_and_instructions(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    check_usage(QUICK, "90", tmp_path)


@pytest.mark.slow
def test_code_for_every_generation(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from .format_names import NAMES

    check_usage(list(NAMES), "80,90,100", tmp_path)


# On CUDA itself.

GPU_CASES = (
    *CASES,
    *(
        Case(case.kernel, case.text, case.dtype, rows, 1000, 4096)
        for case in CASES[:1] + tuple(c for c in CASES if c.kernel == TRELLIS)[2:4]
        for rows in (1, 16, 33, 300)
    ),
)


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_formats_on_cuda(case: Case) -> None:
    given = problem(case, "cuda")
    kernel = select(given.call).kernel
    assert kernel.name == case.kernel
    fields = kernel.prepare(given.call, given.stored)
    result = kernel.run(given.call, given.x, fields, given.bias)
    assert_close_to_exact(result, given)
    assert torch.equal(kernel.run(given.call, given.x, fields, given.bias), result)
