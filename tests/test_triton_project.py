"""The fused projection on a GPU: what it refuses, the kernel interpreted and compiled, and on CUDA itself."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rhoc.runtime.training_kernels import triton_launch, triton_project
from rhoc.runtime.training_kernels.triton_cut import cut_of

from .projection_cases import (
    BFLOAT16,
    CASES,
    FLOAT32,
    RMS,
    Case,
    Hadamard,
    Quantize,
    assert_gradient,
    assert_projected,
    assert_rotated_back,
    chain,
    n_of_m,
)
from .test_kernels import HERE, child

CUDA = torch.device("cuda")
REFUSALS = (
    (Case(chain(Hadamard("full"), RMS), (5, 512)), "Hadamard blocks of 512 are larger than 128"),
    (Case(chain(Hadamard(128), RMS), (5, 33)), "rows of 33 cannot be rotated"),
    (
        Case(chain(Hadamard(128), Quantize(4, strategy="group", group_size=24)), (5, 256)),
        "groups of 24 numbers cut Hadamard blocks of 128",
    ),
    (
        Case(chain(Quantize(4, strategy="group", group_size=20)), (5, 60)),
        "groups of 20 numbers share bytes of the mask",
    ),
    (
        Case(chain(Quantize(4, strategy="token")), (2, 40_000)),
        "a scale for 40000 numbers needs more than 32768 in a program",
    ),
    (Case(chain(n_of_m("2:4"), RMS), (5, 6)), "2:4 does not divide rows of 6"),
    (
        Case(chain(n_of_m("2:4"), Quantize(4, strategy="group", group_size=16)), (5, 64)),
        "zeroed numbers are tested with the widest scale of their row, and groups are apart",
    ),
    (
        Case(chain(Quantize(4, absmax_rule="signed")), (5, 64)),
        "a signed scale of the whole tensor has no kernel",
    ),
    (Case(chain(RMS), (5, 64), torch.float64), "numbers are float64, not float32, float16 or bfloat16"),
    (Case(chain(RMS), ()), "a single number has no rows"),
)


@pytest.fixture
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_project, "capability", lambda device: (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize(
    ("case", "reason"), REFUSALS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_refusal_says_why(case: Case, reason: str) -> None:
    assert triton_project.refusal(case.plan, case.shape, case.dtype, CUDA) == reason


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_needs_cuda(case: Case) -> None:
    assert triton_project.refusal(case.plan, case.shape, case.dtype, CUDA) == ""
    reason = triton_project.refusal(case.plan, case.shape, case.dtype, torch.device("cpu"))
    assert reason == "the device is cpu, and it needs cuda"


@pytest.mark.usefixtures("_hopper")
def test_older_devices_hold_less(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(chain(Hadamard(128), RMS), (5, 4096))

    def reason(dtype: torch.dtype, size: int = 4096) -> str:
        return triton_project.refusal(case.plan, (5, size), dtype, CUDA)

    monkeypatch.setattr(triton_project, "capability", lambda device: (8, 0))
    few = "Hadamard blocks of 128 take too many registers before compute capability 9.0"
    assert (reason(BFLOAT16), reason(FLOAT32), reason(BFLOAT16, 14_336)) == ("", few, few)
    monkeypatch.setattr(triton_project, "capability", lambda device: (7, 5))
    assert reason(BFLOAT16) == "the device has no bfloat16 tensor cores: its compute capability is below 8.0"


@pytest.mark.usefixtures("_hopper")
def test_it_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_project, "_installed", lambda: False)
    case = CASES[0]
    assert triton_project.refusal(case.plan, case.shape, case.dtype, CUDA) == "Triton is not installed"


def test_importing_it_does_not_import_triton() -> None:
    code = "import sys, rhoc.runtime.training_kernels.triton_project; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_number_is_in_one_tile(case: Case) -> None:
    cut = cut_of(case.plan, case.shape[-1])
    assert not isinstance(cut, str)
    size, covered = case.shape[-1], []
    for segment in range(cut.per_row):
        start = segment * cut.segment
        covered += range(start, min(start + cut.segment, size))
        assert cut.lines * cut.width >= cut.segment
    assert covered == list(range(size))
    for processors in (1, 132):
        lines = cut.tile_lines(case.x.numel(), processors)
        assert lines % cut.lines == 0
        assert lines * cut.width >= 2048


def test_programs_fill_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_processors", lambda device: 132)
    given = triton_launch.Given(8192, 4096, BFLOAT16, torch.device("cpu"))
    rotated, plain = Case(chain(Hadamard(128), RMS), (5, 256)).plan, Case(chain(RMS), (5, 256)).plan
    assert triton_launch.projecting.__wrapped__(rotated, given, True, True).programs == 4 * 132
    assert triton_launch.projecting.__wrapped__(plain, given, True, True).programs == 8192 * 4096 // 8192


def test_the_kernels_interpreted() -> None:
    pytest.importorskip("triton")
    printed = child(
        ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "interpreted_projection.py")],
        TRITON_INTERPRET="1",
        OMP_NUM_THREADS="1",
    )
    rotated = sum(case.plan.block > 0 for case in CASES)
    assert re.search(rf"{3 * len(CASES) + rotated + 18} passed", printed), printed


def usage(folder: Path, *numbers: int) -> str:
    pytest.importorskip("triton")
    arguments = ["-W", "ignore", "-m", "tests.projection_usage", str(folder), *map(str, numbers)]
    return child(arguments, TRITON_CACHE_DIR=str(folder))


def test_nothing_is_spilled_of_quest_on_ampere_and_hopper(tmp_path: Path) -> None:
    printed = usage(tmp_path)
    usages = [dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", line)) for line in printed.splitlines()]
    assert len(usages) == 8
    assert printed.count(" no tensor cores ") == 0
    for used in usages:
        assert (used["STACK"], used["LOCAL"]) == ("0", "0"), printed
        assert int(used["REG"]) <= 255


def test_what_is_unlike_the_others_compiles(tmp_path: Path) -> None:
    """Groups within blocks, signed scales of short rows, and tables; the tensor's scale of survivors."""
    printed = usage(tmp_path, 4, 13, 20, 25)
    assert printed.count("compiled") == 9, printed


@pytest.mark.slow
def test_everything_compiles(tmp_path: Path) -> None:
    assert usage(tmp_path, *range(len(CASES))).count("compiled project") == len(CASES)


LARGE = tuple(
    Case(chain(*stages), shape, dtype)
    for dtype in (BFLOAT16, FLOAT32)
    for shape in ((2048, 4096), (3, 5, 14_336), (100, 28_672))
    for stages in (
        (Hadamard(128), replace(RMS, scale_dtype="float32")),
        (replace(RMS, scale_dtype="float32"),),
    )
)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_projection_on_cuda(case: Case) -> None:
    case = replace(case, device="cuda")
    assert_projected(case)
    for keep_rotated in (True, False) if case.shape[-1] <= 4096 else ():
        assert_gradient(case, keep_rotated)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case for case in CASES if case.plan.block], ids=str)
def test_projection_rotated_back_on_cuda(case: Case) -> None:
    assert_rotated_back(replace(case, device="cuda"))
