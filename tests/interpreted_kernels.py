"""The Triton kernel on a CPU: run by `test_kernels.py` in a process of its own with TRITON_INTERPRET=1.

The variable must be set before anything imports Triton, and the interpreter leaves its own language behind.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rhoc.runtime.kernels import select
from rhoc.runtime.kernels.gpu.int_linear import IntLinear, launch, plan

from .kernel_cases import (
    BFLOAT16,
    CASES,
    FLOAT16,
    FLOAT32,
    Case,
    assert_close_to_exact,
    assert_gradients,
    problem,
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_int_linear_is_as_good_as_the_plain_version(case: Case) -> None:
    given = problem(case)
    selection = select(given.call)
    assert selection.kernel.name == "int_linear"
    assert_close_to_exact(selection.kernel.run(given.call, given.x, given.stored, given.bias), given)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_parts_of_k_add_up(dtype: torch.dtype) -> None:
    given = problem(Case(dtype=dtype, k=224, rows=2))
    cut = replace(plan(2, given.call.shape, None, dtype, 1), block_k=32, splits=3)
    assert_close_to_exact(launch(given.call, given.x, given.stored, given.bias, cut), given)


def test_groups_keep_their_scale_across_parts() -> None:
    given = problem(Case(strategy="group", group=64, k=256, dtype=FLOAT16))
    cut = replace(plan(3, given.call.shape, 64, FLOAT16, 1), block_k=32, splits=4)
    assert_close_to_exact(launch(given.call, given.x, given.stored, given.bias, cut), given)


def test_any_input_shape_and_layout() -> None:
    given = problem(Case(rows=6, dtype=FLOAT16))
    run = IntLinear().run
    expected = run(given.call, given.x, given.stored, given.bias)
    deep = run(given.call, given.x.reshape(2, 3, -1), given.stored, given.bias)
    assert torch.equal(deep, expected.reshape(2, 3, -1))
    wide = torch.zeros(6, 200, dtype=FLOAT16)
    wide[:, 5:101] = given.x
    assert torch.equal(run(given.call, wide[:, 5:101], given.stored, given.bias), expected)
    assert torch.equal(run(given.call, given.x.T.contiguous().T, given.stored, given.bias), expected)
    assert torch.equal(run(given.call, given.x[0], given.stored, given.bias), expected[0])
    assert run(given.call, given.x[:0], given.stored, given.bias).shape == (0, 40)


def test_gradients_reach_the_input_and_the_bias() -> None:
    assert_gradients(IntLinear(), Case(dtype=BFLOAT16))
