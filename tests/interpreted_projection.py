"""The fused projection for a GPU on a CPU: run by `test_triton_project.py` with TRITON_INTERPRET=1.

The variable must be set before anything imports Triton.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rhoc.runtime.training_kernels import triton_project

from .interpreter import take_bounds_from_arrays
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
    unpacked,
)

take_bounds_from_arrays()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_masks(case: Case) -> None:
    assert_projected(case)


@pytest.mark.parametrize("case", [case for case in CASES if case.plan.block], ids=str)
def test_values_rotated_back(case: Case) -> None:
    assert_rotated_back(case)


@pytest.mark.parametrize("keep_rotated", [True, False], ids=["kept rotated", "rotated back"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case: Case, keep_rotated: bool) -> None:
    assert_gradient(case, keep_rotated)


def test_many_tiles_for_a_program() -> None:
    """Four programs share 37 tiles, none of them full of whole rows."""
    assert_projected(Case(chain(Hadamard(16), RMS), (1_000, 48), FLOAT32))
    assert_gradient(Case(chain(Hadamard(16), RMS), (1_000, 48), FLOAT32), keep_rotated=False)


def test_a_long_row_is_one_tile() -> None:
    assert_projected(Case(chain(Hadamard(128), RMS), (2, 9_088)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of squares that are too large
@pytest.mark.parametrize("scale", [1e-39, 1e-30, 1e30, 3e37], ids=str)
@pytest.mark.parametrize("stage", [RMS, Quantize(4, strategy="group", group_size=32)], ids=str)
def test_tiny_and_huge_numbers(stage: Quantize, scale: float) -> None:
    case = Case(chain(stage), (5, 96), FLOAT32)
    x = case.x * scale
    projected, _ = triton_project.project(x, case.plan, True, True)
    want = case.representation.view(x).projected
    torch.testing.assert_close(projected, want, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("observer", ["absmax", "rms", "absmean"])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_nan_reaches_all_that_share_its_scale(observer: str, dtype: torch.dtype) -> None:
    case = Case(chain(Quantize(4, strategy="group", group_size=32, observer=observer)), (5, 96), dtype)
    x = case.x.clone()
    x[2, 40] = math.nan
    projected, bits = triton_project.project(x, case.plan, True, True)
    assert torch.equal(projected.isnan(), case.representation.view(x).projected.isnan())
    assert projected.isnan().sum() == 32
    assert not unpacked(bits, case.shape)[projected.isnan()].any()


def test_masks_that_nobody_wants_are_empty() -> None:
    case = Case(chain(Hadamard(128), RMS), (5, 256))
    wanted, bits = triton_project.project(case.x, case.plan, False, True)
    unwanted, none = triton_project.project(case.x, case.plan, False, False)
    assert torch.equal(wanted, unwanted)
    assert (bits.shape, none.shape) == ((5, 32), (0,))


def test_other_numbers_need_no_other_kernel() -> None:
    """Factors may change in every step of a schedule; only what a kernel does is compiled into it."""
    from rhoc.runtime.estimators import Trust
    from rhoc.runtime.training_kernels.plan import plan_of
    from rhoc.runtime.training_kernels.triton_launch import Given, projecting

    case = Case(chain(Hadamard(128), RMS), (5, 256))
    other = chain(Hadamard(128), replace(RMS, num_bits=3, clip=1.5))
    launches = [
        projecting(plan, Given.of(case.x), False, True).arguments
        for plan in (case.plan, plan_of(other, (Trust(0.7),)))
    ]
    changed = {name for name in launches[0] if launches[0][name] is not launches[1][name]}
    assert {"trust", "multiplier", "lowest"} <= changed
    assert all(launches[0][name] == launches[1][name] for name in launches[0] if name.isupper())
