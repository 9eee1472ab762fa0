"""The Triton kernels on inputs, lookups, experts and caches, on a CPU: run by `test_gpu_inputs.py` with
TRITON_INTERPRET=1, which must be set before anything imports Triton. The checks themselves take a device.
"""

from __future__ import annotations

import pytest
import torch

from rhoc.runtime.kernels import select

from .input_cases import CASES, Case
from .input_checks import (
    CACHED,
    ENTERED,
    GROUPED,
    PARTS,
    ROUNDED,
    ROWS,
    TURNED,
    Entered,
    check_attention,
    check_codes,
    check_experts,
    check_gradients,
    check_layouts,
    check_lookup,
    check_norm,
    check_packed_experts,
    check_parts,
    check_product,
    check_rotation,
)
from .interpreter import take_bounds_from_arrays

take_bounds_from_arrays()

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_are_as_good_as_those_of_the_parts(case: Case) -> None:
    check_product(case, "cpu")


@dtypes
@pytest.mark.parametrize("stage", ROUNDED, ids=str)
@pytest.mark.parametrize("block", [0, 128])
def test_codes_of_inputs_are_those_of_the_stage(stage: object, block: int, dtype: torch.dtype) -> None:
    check_codes(stage, block, dtype, "cpu")


def test_any_layout_of_inputs() -> None:
    check_layouts("cpu")


def test_gradients_pass_straight_through() -> None:
    check_gradients("cpu")


@dtypes
@pytest.mark.parametrize("case", ENTERED, ids=str)
def test_norms_enter_as_their_parts_do(case: Entered, dtype: torch.dtype) -> None:
    check_norm(case, dtype, "cpu")


@dtypes
@pytest.mark.parametrize(("size", "block"), TURNED)
def test_rotations_are_as_good_as_the_stage(size: int, block: int | str, dtype: torch.dtype) -> None:
    check_rotation(size, block, dtype, "cpu")


@dtypes
@pytest.mark.parametrize("stage", ROWS, ids=str)
def test_rows_are_those_that_decoding_gives(stage: object, dtype: torch.dtype) -> None:
    check_lookup(stage, dtype, "cpu")


@pytest.mark.parametrize(("stage", "entering", "dtype"), GROUPED, ids=str)
def test_experts_are_as_good_as_one_by_one(stage: object, entering: object, dtype: torch.dtype) -> None:
    check_experts(stage, entering, dtype, "cpu")


def test_packed_experts_run_together() -> None:
    check_packed_experts("cpu")


@pytest.mark.parametrize(
    ("stage", "dtype"), [*((s, torch.float32) for s in CACHED), *((s, torch.bfloat16) for s in CACHED[:2])]
)
def test_attention_is_as_good_as_over_decoded_slots(stage: object, dtype: torch.dtype) -> None:
    check_attention(stage, dtype, "cpu")


@pytest.mark.parametrize("case", PARTS, ids=str)
def test_parts_of_k_add_up(case: Case) -> None:
    check_parts(case, "cpu")


def test_kernels_are_selected() -> None:
    assert select(CASES[0].call()).kernel.name == "gpu_int8_linear"
