"""The fused projection on a CPU against the stages it stands for, and dense formulas in float64."""

from __future__ import annotations

import ctypes
import math
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor

from rhoc.runtime.estimators import Banded, Clip, Estimator, StraightThrough, Trust
from rhoc.runtime.native import build as native_build
from rhoc.runtime.native import threads
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify, Stage
from rhoc.runtime.training_kernels import native
from rhoc.runtime.training_kernels.plan import Plan, plan_of
from rhoc.runtime.training_kernels.select import mask_shape

from .other_processors import compiled_without

CPU = torch.device("cpu")
TRUST: tuple[Estimator, ...] = (Trust(),)
SHAPES = ((5, 64), (3, 7, 200), (1, 1000), (33, 520), (2, 4096), (24,))
RMS = Quantize(4, strategy="channel", observer="rms", grid="midrise")

pytestmark = pytest.mark.usefixtures("one_thread")


def nm(structure: str) -> Sparsify:
    return Sparsify(sparsity_structure=structure)


# Nothing is summed and nothing rotated: the same numbers, to the last bit.
EXACT: list[tuple[Stage, ...]] = [
    (Quantize(4),),
    (Quantize(8, strategy="token"),),
    (Quantize(3, strategy="group", group_size=20, absmax_rule="full"),),
    (Quantize(4, strategy="group", group_size=128, absmax_rule="sym", scale_dtype="float16"),),
    (Quantize(4, strategy="group", group_size=32, absmax_rule="signed"),),
    (Quantize(4, strategy="tensor", absmax_rule="signed", scale_dtype="bfloat16"),),
    (Quantize(4, strategy="group", group_size=32, scale_dtype="e8m0"),),
    (Quantize(5, strategy="channel", grid="midtread"),),
    (Quantize(6, strategy="channel", grid="midrise"),),
    (Quantize(2, strategy="group", group_size=64, grid="ternary"),),
    (Quantize(1, strategy="channel"),),
    (Quantize(1, strategy="tensor"),),
    (Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor"),),
    (Quantize(4, "float", strategy="group", group_size=32, observer="three_quarters"),),
    (Quantize(8, strategy="group", group_size=32, observer="mx_rceil"),),
    (Quantize(8, strategy="group", group_size=32, observer="mx_even", scale_dtype="float32"),),
    (Quantize(8, "float", strategy="token"),),
    (Quantize(6, "float", grid="e3m2", strategy="channel"),),
    (Quantize(4, "float", grid="nf4", strategy="group", group_size=64),),
    (Quantize(4, "float", grid="e3m0", strategy="channel"),),
    (Quantize(2, "float", grid=(-1.0, 0.0, 0.25, 3.0), strategy="channel"),),
    (nm("2:4"),),
    (nm("2:4"), Quantize(4, strategy="group", group_size=64)),
    (nm("1:8"), Quantize(4, strategy="channel")),
    (nm("6:8"), Quantize(1, strategy="group", group_size=30)),
    (nm("3:4"), Quantize(4, "float", grid="nf4", strategy="tensor")),
]
# Sums and rotations round in another order: numbers at a border may fall to either side. (The grid `twos` puts
# the largest of every group halfway between two levels, so it is not among these.)
CLOSE: list[tuple[Stage, ...]] = [
    (RMS,),
    (Quantize(2, strategy="group", group_size=32, observer="rms"),),
    (Quantize(8, strategy="tensor", observer="rms", grid="midrise"),),
    (Quantize(1, strategy="channel", observer="rms"),),
    (Quantize(2, strategy="channel", grid="ternary", observer="absmean"),),
    (Quantize(3, "float", grid="lloyd", strategy="channel", observer="rms"),),
    (nm("5:8"), RMS),
    *[(Hadamard(block), RMS) for block in (2, 4, 8, 16, 32, 64, 128, 256, 512, 4096)],
    (Hadamard(128, signs=3), Quantize(4, strategy="group", group_size=50, grid="midrise")),
    (Hadamard(1024, signs=5), Quantize(4, strategy="channel", grid="midtread")),
    (Hadamard(16), Quantize(1, strategy="channel", observer="rms")),
    (Hadamard(8, signs=1), nm("2:4"), Quantize(4, strategy="group", group_size=64, grid="midrise")),
    (Hadamard(32), nm("2:4"), Quantize(4, strategy="tensor", grid="midtread")),
    (Hadamard("full"), Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor")),
]


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The kernel compiled into a folder of these tests, unless this machine has no compiler."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    native._library.cache_clear()
    yield
    native._library.cache_clear()
    del os.environ["XDG_CACHE_HOME"]
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


def planned(stages: tuple[Stage, ...], estimators: tuple[Estimator, ...] = TRUST) -> Plan:
    plan = plan_of(Representation(stages), estimators)
    assert isinstance(plan, Plan), plan
    return plan


def taken(plan: Plan, x: Tensor) -> bool:
    """Whether the kernel takes a tensor; False only where the dimension does not fit the chain."""
    reason = native.refusal(plan, tuple(x.shape), x.dtype, x.device)
    if "compiler" in reason:
        pytest.skip(reason)
    assert not reason or "rotated" in reason or "divide" in reason, reason
    return not reason


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def unpacked(mask: Tensor, size: int) -> Tensor:
    """Bools `[rows, size]`, by numpy's own reading of bits."""
    bits = np.unpackbits(mask.numpy(), axis=-1, count=size, bitorder="little")
    return torch.from_numpy(bits.astype(bool))


def by_stages(
    x: Tensor, stages: tuple[Stage, ...], estimator: Estimator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(latent, projected, mask, how far each number's test is from failing), all `[rows, n]`, in float32."""
    view = Representation(stages).view(x)
    mask = estimator.mask(view) if stages[-1].kind == "quantize" else None
    passes = torch.ones(x.shape, dtype=torch.bool) if mask is None else mask != 0
    margin = torch.full(x.shape, math.inf)
    if mask is not None and view.cell is not None:
        latent, two = view.latent.float(), view.cell.num_levels == 2
        factor = (1.30 if view.rotated else 1.25) if two else 1.0
        tested = latent.abs() if two else (view.projected - latent).abs()
        margin = tested - factor * (view.cell.outermost if two else view.cell.half_width)
    tensors = (view.latent.float(), view.projected.float(), passes, margin)
    latent, projected, passes, margin = (t.reshape(-1, x.shape[-1]) for t in tensors)
    return latent, projected, passes, margin


def rows_of(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The kernel's projection, still rotated, and mask, `[rows, n]`."""
    projected, mask = native.project(x, plan, True, True)
    assert projected.shape == x.shape
    assert projected.dtype == x.dtype
    if not plan.masks:
        assert mask.numel() == 0
        return projected.reshape(-1, x.shape[-1]), torch.ones(x.numel() // x.shape[-1], x.shape[-1]).bool()
    assert list(mask.shape) == mask_shape(x)
    return projected.reshape(-1, x.shape[-1]), unpacked(mask, x.shape[-1])


def estimator_of(stages: tuple[Stage, ...]) -> Estimator:
    return Trust() if stages[-1].kind == "quantize" else StraightThrough()


def named(stages: tuple[Stage, ...]) -> str:
    return str(Representation(stages))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stages", EXACT, ids=named)
def test_the_same_bits_without_sums(stages: tuple[Stage, ...], dtype: torch.dtype) -> None:
    estimator, plan, tried = estimator_of(stages), planned(stages), 0
    for shape in SHAPES:
        x = normal(*shape, dtype=dtype)
        if taken(plan, x):
            projected, mask = rows_of(x, plan)
            _, expected, passes, _ = by_stages(x, stages, estimator)
            assert torch.equal(projected, expected.to(dtype))
            assert torch.equal(mask, passes)
            assert mask.any()
            tried += 1
    assert tried >= 3


@pytest.mark.parametrize("stages", CLOSE, ids=named)
def test_only_numbers_at_a_border_differ(stages: tuple[Stage, ...]) -> None:
    plan, tried, wrong, total = planned(stages), 0, 0, 0
    for shape in SHAPES:
        x = normal(*shape)
        if not taken(plan, x):
            continue
        projected, mask = rows_of(x, plan)
        latent, expected, passes, margin = by_stages(x, stages, Trust())
        near = 1e-6 * latent.abs().amax(-1, keepdim=True)
        other = (projected - expected).abs() > 1e-6 * expected.abs()
        pruned = (projected == 0) != (expected == 0)  # of two magnitudes that are equal but for rounding
        border = (projected + expected) / 2
        assert ((latent - border).abs() <= near)[other & ~pruned].all()
        assert (margin.abs() <= near)[(mask != passes) & ~other].all()
        tried, wrong, total = tried + 1, wrong + int((other | (mask != passes)).sum()), total + x.numel()
    assert tried >= 2
    assert wrong <= 2e-4 * total


@pytest.mark.parametrize("stages", [(RMS,), (Hadamard(16), RMS), (Hadamard(64), nm("2:4"), RMS)], ids=named)
def test_bfloat16_is_rounded_where_the_stages_round(stages: tuple[Stage, ...]) -> None:
    plan, x = planned(stages), normal(64, 512, dtype=torch.bfloat16)
    assert taken(plan, x)
    projected, mask = rows_of(x, plan)
    _, expected, passes, _ = by_stages(x, stages, Trust())
    assert (projected != expected.bfloat16()).float().mean() <= 2e-3
    assert (mask != passes).float().mean() <= 2e-3


@pytest.mark.parametrize(
    "estimators", [(Clip(),), (Clip(0.8), Trust()), (Trust(0.6),), (StraightThrough(),)], ids=str
)
@pytest.mark.parametrize("stages", [EXACT[0], EXACT[10], EXACT[4], EXACT[22], EXACT[24]], ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_of_estimators(
    stages: tuple[Stage, ...], estimators: tuple[Estimator, ...], dtype: torch.dtype
) -> None:
    plan, x = planned(stages, estimators), normal(9, 240, dtype=dtype)
    assert taken(plan, x)
    view = Representation(stages).view(x)
    expected = torch.ones(x.shape, dtype=torch.bool)
    for estimator in estimators:
        mask = estimator.mask(view)
        expected &= torch.ones_like(expected) if mask is None else mask != 0
    _, mask = rows_of(x, plan)
    assert torch.equal(mask, expected)
    assert plan.masks == (estimators != (StraightThrough(),))


@pytest.mark.parametrize("fill", [0.0, 1e-45, 1e-39, 3e-38, 1e30, 3e38, -3e38], ids=str)
@pytest.mark.parametrize("stages", [*EXACT, (RMS,), CLOSE[4]], ids=named)
def test_extreme_numbers(stages: tuple[Stage, ...], fill: float) -> None:
    plan, x = planned(stages), normal(4, 240)
    x[1], x[2, ::3], x[3, -1] = fill, fill, fill
    assert taken(plan, x)
    projected, mask = rows_of(x, plan)
    _, expected, passes, _ = by_stages(x, stages, estimator_of(stages))
    torch.testing.assert_close(projected, expected, rtol=1e-6, atol=0, equal_nan=True)
    assert (mask != passes).sum() <= (stages[-1].kind == "quantize" and fill > 1e29)  # where squares overflow


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("stages", [*EXACT, (RMS,)], ids=named)
def test_numbers_that_are_none_spoil_what_shares_their_scale(stages: tuple[Stage, ...], wrong: float) -> None:
    plan, x = planned(stages), normal(4, 240)
    if math.isinf(wrong) and (plan.statistic == "power" or plan.scale_dtype == "e8m0"):
        wrong = math.nan  # torch.frexp leaves the exponent of infinity open
    x[1, 7] = wrong
    assert taken(plan, x)
    projected, mask = rows_of(x, plan)
    _, expected, passes, _ = by_stages(x, stages, estimator_of(stages))
    torch.testing.assert_close(projected, expected, rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(mask, passes)
    assert not torch.equal(projected, projected) or math.isinf(wrong)


@pytest.mark.parametrize("keep_rotated", [False, True])
@pytest.mark.parametrize(
    ("block", "signs", "size"),
    [
        (1, None, 200),
        (2, 7, 30),
        (8, None, 24),
        (16, 3, 80),
        (128, None, 256),
        (128, 9, 384),
        (512, None, 512),
    ],
)
def test_both_passes_against_the_matrix(block: int, signs: int | None, size: int, keep_rotated: bool) -> None:
    grid = Quantize(2, strategy="channel", observer="rms", grid="midrise")
    stages: tuple[Stage, ...] = (grid,) if block == 1 else (Hadamard(block, signs=signs), grid)
    plan, x, upstream = planned(stages), normal(6, size), normal(6, size, seed=1)
    assert taken(plan, x)
    matrix = np.kron(np.eye(size // block), hadamard(block) / math.sqrt(block))
    if signs is not None:
        generator = torch.Generator().manual_seed(signs)
        matrix = matrix * (1 - 2 * torch.randint(2, (size,), generator=generator)).double().numpy()[:, None]
    rotated, _ = native.project(x, plan, True, False)
    projected, mask = native.project(x, plan, keep_rotated, True)
    back = np.eye(size) if keep_rotated else matrix.T
    np.testing.assert_allclose(projected.numpy(), rotated.double().numpy() @ back, rtol=0, atol=2e-6)
    passes = unpacked(mask, size).numpy()
    assert 0 < passes.mean() < 1
    grad = native.backward(upstream, mask, plan, keep_rotated).numpy()
    expected = (passes * (upstream.double().numpy() @ (np.eye(size) if keep_rotated else matrix))) @ matrix.T
    np.testing.assert_allclose(grad, expected, rtol=0, atol=2e-6)
    everywhere = native.backward(upstream, torch.empty(0, dtype=torch.uint8), plan, keep_rotated).numpy()
    undone = upstream.double().numpy() @ (matrix.T if keep_rotated else np.eye(size))
    np.testing.assert_allclose(everywhere, undone, rtol=0, atol=2e-6)


def test_backward_in_bfloat16_is_rounded_once() -> None:
    plan, x, upstream = planned((Hadamard(32), RMS)), normal(7, 96), normal(7, 96, seed=1)
    assert taken(plan, x)
    _, mask = native.project(x, plan, False, True)
    exact = native.backward(upstream.bfloat16().float(), mask, plan, False)
    assert torch.equal(native.backward(upstream.bfloat16(), mask, plan, False), exact.bfloat16())


def test_a_gradient_that_is_no_number_is_not_hidden() -> None:
    plan, x = planned((Quantize(4, strategy="channel", observer="rms"),)), normal(2, 64)
    assert taken(plan, x)
    _, mask = native.project(x, plan, False, True)
    masked = native.backward(torch.full((2, 64), math.nan), mask, plan, False)
    assert not unpacked(mask, 64).all()
    assert masked.isnan().all()


@pytest.mark.parametrize(
    "stages", [(Quantize(4),), (Quantize(8, observer="rms"),), (Hadamard(128), nm("2:4"), RMS)], ids=named
)
def test_threads_change_nothing(stages: tuple[Stage, ...]) -> None:
    plan, x, upstream = planned(stages), normal(1031, 1024), normal(1031, 1024, seed=1)
    assert taken(plan, x)
    assert x.numel() > threads.MANY
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        projected, mask = native.project(x, plan, False, True)
        results.append((projected, mask, native.backward(upstream, mask, plan, False)))
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


@pytest.mark.parametrize(
    ("stages", "estimators", "reason"),
    [
        ((), TRUST, "nothing is projected"),
        ((Hadamard(8),), (), "a rotation alone"),
        ((Hadamard(12), RMS), TRUST, "not a power of two"),
        ((Hadamard(8, signs="fresh"), RMS), TRUST, "drawn for every tensor"),
        ((Sparsify(0.5), RMS), TRUST, "not n:4 or n:8"),
        ((Sparsify(sparsity_structure="4:8", vector=2), RMS), TRUST, "of single numbers"),
        ((Sparsify(sparsity_structure="2:4", scores="given"), RMS), TRUST, "by magnitude"),
        ((nm("3:8"), Quantize(4, strategy="group", group_size=32)), TRUST, "cut by 3:8"),
        ((RMS, ), (Banded(p=0.1),), "estimator banded"),
        ((Quantize(4, symmetric=False),), TRUST, "zero points"),
        ((Quantize(4, "float", strategy="tensor_group"),), TRUST, "strategy tensor_group"),
        ((Quantize(4, strategy="block", block_structure=(2, 2)),), TRUST, "block_structure"),
        ((Quantize(4, observer="mse"),), TRUST, "observer mse"),
        ((Quantize(4, scale_dtype="float8_e4m3fn"),), TRUST, "float8_e4m3fn"),
        ((Quantize(6, "float", grid="nf6"),), TRUST, "a table of 64 levels"),
        ((nm("2:4"), Hadamard(8), RMS), TRUST, "in this order"),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_plan_says_why(
    stages: tuple[Stage, ...], estimators: tuple[Estimator, ...], reason: str
) -> None:
    plan = plan_of(Representation(stages), estimators)
    assert isinstance(plan, str)
    assert reason in plan


@pytest.mark.parametrize(
    ("stages", "shape", "dtype", "reason"),
    [
        ((RMS,), (4, 8), torch.float64, "float64"),
        ((RMS,), (4, 8), torch.float16, "float16"),
        ((RMS,), (), torch.float32, "no rows"),
        ((RMS,), (4, 0), torch.float32, "no numbers"),
        ((Hadamard(8), RMS), (4, 9), torch.float32, "dimension of 9"),
        ((Hadamard("full"), RMS), (4, 24), torch.float32, "dimension of 24"),
        ((nm("2:4"), RMS), (4, 6), torch.float32, "2:4 does not divide 6"),
    ],
    ids=str,
)
def test_what_is_not_taken(
    stages: tuple[Stage, ...], shape: tuple[int, ...], dtype: torch.dtype, reason: str
) -> None:
    assert reason in native.refusal(planned(stages), shape, dtype, CPU)
    assert "needs cpu" in native.refusal(planned(stages), shape, dtype, torch.device("meta"))


# Compiling


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="flags of GCC and Clang for x86")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx2"])
def test_other_instructions(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left when the compiler may not use some of this processor's instructions."""
    if os.uname().machine != "x86_64":
        pytest.skip("the flag is one of x86")
    library = native.bound(compiled_without(native.SOURCES, without))
    assert isinstance(library, ctypes.CDLL), library
    monkeypatch.setattr(native, "_library", lambda: library)
    for stages in EXACT:
        for dtype in (torch.float32, torch.bfloat16):
            test_the_same_bits_without_sums(stages, dtype)
    for stages in CLOSE:
        test_only_numbers_at_a_border_differ(stages)
    for block, signs in ((64, None), (128, 3), (256, 3)):  # around the block that is turned in pairs
        for keep_rotated in (False, True):
            test_both_passes_against_the_matrix(block, signs, 512, keep_rotated)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """The library as if it had never been asked for."""
    kept = native._library
    kept.cache_clear()
    yield
    kept.cache_clear()


@pytest.mark.usefixtures("uncompiled")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    reason = native.refusal(planned((RMS,)), (4, 8), torch.float32, CPU)
    assert reason.startswith("there is no C++ compiler called /nonexistent/c++ (CXX); install g++")


@pytest.mark.usefixtures("uncompiled")
def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHOC_NATIVE", "0")
    assert native.refusal(planned((RMS,)), (4, 8), torch.float32, CPU) == "RHOC_NATIVE=0 switches it off"


def compiler(folder: Path, body: str) -> str:
    """A program that stands for a compiler: `$out` is where it is to write."""
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\nfor out; do :; done\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler(tmp_path, "echo note; echo 'x.h:1: error: too old' >&2; exit 1"))
    reason = native_build.built(native.SOURCES)
    assert isinstance(reason, str)
    assert "cannot compile it: x.h:1: error: too old" in reason
    assert not list((tmp_path / "rhoc").iterdir())


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("CXX", compiler(tmp_path, "exit 0"))
    reason = native_build.built(native.SOURCES)
    assert isinstance(reason, str)
    assert "set XDG_CACHE_HOME" in reason


def test_who_waits_at_a_terminal_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler(tmp_path, 'printf whole > "$out"'))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    path = native_build.built(native.SOURCES)
    assert isinstance(path, Path)
    assert (
        capsys.readouterr().err == "rhoc: compiling projection for this processor (once, some seconds) ...\n"
    )
    assert native_build.built(native.SOURCES) == path
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    path.unlink()
    assert native_build.built(native.SOURCES) == path
    assert capsys.readouterr().err == "", "once, and not where nobody looks"


def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    body = f'echo run >> {tmp_path}/runs; printf half > "$out"; sleep 0.5; printf whole > "$out"'
    code = (
        "from pathlib import Path; from rhoc.runtime.native.build import Library, built;"
        f"print(built(Library('some', Path({str(native.SOURCES.folder)!r}), {native.SOURCES.source!r})))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CXX": compiler(tmp_path, body)}

    def process() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )

    def found(one: subprocess.Popen[str]) -> Path:
        return Path(one.communicate(timeout=60)[0].strip())

    paths = {found(one) for one in [process(), process()]}
    (path,) = paths
    assert path.read_text() == "whole"
    assert [path] == list(path.parent.iterdir()), "nothing else is left"
    assert (tmp_path / "runs").read_text() == "run\n", "the second waits for the first"
    assert found(process()) == path
    assert (tmp_path / "runs").read_text() == "run\n", "compiled once, it is found again"
