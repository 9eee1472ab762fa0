"""The weight-only linear of CUDA on a CPU: run by `test_gpu_linear.py` in a process with TRITON_INTERPRET=1.

The variable must be set before anything imports Triton, and the interpreter leaves its own language behind.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rhoc.runtime.kernels import Call, select
from rhoc.runtime.kernels.gpu import linear_launch as launch
from rhoc.runtime.kernels.gpu.linear import TritonLinear, TritonLinearActivation, decoded, reference
from rhoc.runtime.kernels.gpu.linear_plan import Few, Tile, few
from rhoc.runtime.kernels.neighbours import ACTIVATIONS
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix

from .interpreter import take_bounds_from_arrays
from .kernel_cases import (
    BFLOAT16,
    CASES,
    FLOAT16,
    FLOAT32,
    Case,
    Problem,
    assert_close_to_exact,
    assert_gradients,
    problem,
)
from .matrix_cases import FORMATS, format_problem

take_bounds_from_arrays()


def matrix_of(given: Problem) -> StoredMatrix:
    matrix = stored_matrix(given.call.representation, given.call.shape)
    assert isinstance(matrix, StoredMatrix)
    return matrix


@pytest.mark.parametrize("case", CASES, ids=str)
def test_integers_are_as_good_as_the_plain_version(case: Case) -> None:
    given = problem(case)
    kernel = select(given.call).kernel
    assert kernel.name == "triton_linear"
    fields = kernel.prepare(given.call, given.stored)
    assert_close_to_exact(kernel.run(given.call, given.x, fields, given.bias), given)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_as_good_as_the_plain_version(name: str) -> None:
    """Both regimes that multiply packed codes, the decoded weight, and one of the dtypes in turn."""
    dtype = (BFLOAT16, FLOAT16)[FORMATS.index(name) % 2]
    for rows in (3, 18):
        given = format_problem(name, dtype, rows)
        assert_close_to_exact(TritonLinear().run(given.call, given.x, given.stored, given.bias), given)
    weight = decoded(given.call, given.stored)
    assert_close_to_exact(F.linear(given.x, weight, given.bias), given)


@pytest.mark.parametrize("name", FORMATS[::7])
def test_formats_under_float32(name: str) -> None:
    """Sums of 128 products in float32, in any order."""
    given = format_problem(name, FLOAT32, 2)
    result = TritonLinear().run(given.call, given.x, given.stored, given.bias)
    bound = 128**0.5 * torch.finfo(FLOAT32).eps * given.exact.abs().max()
    assert (result.double() - given.exact).abs().max() <= bound
    assert (decoded(given.call, given.stored).double() - decoded64(given)).abs().max() <= bound


def decoded64(given: Problem) -> torch.Tensor:
    """The weight in float64, from products of the identity."""
    core = given.call.representation
    return core.restore(core.unpack(given.stored, given.call.shape, FLOAT32)).double()


@pytest.mark.parametrize("pairs", [2, 4])
@pytest.mark.parametrize("name", ["int4", "int2", "int3", "int8", "nf4", "nvfp4", "mxfp6"])
def test_operands_share_an_order_of_k_of_any_compiler(
    name: str, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "side", lambda scaled_by_bytes: pairs)
    for rows in (3, 18):
        given = format_problem(name, BFLOAT16, rows, k=256)
        assert_close_to_exact(TritonLinear().run(given.call, given.x, given.stored, given.bias), given)


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9, 16, 17, 33, 70])
@pytest.mark.parametrize(("n", "k", "group"), [(33, 136, None), (50, 192, 64), (5, 97, None)])
def test_rows_and_tails(rows: int, n: int, k: int, group: int | None) -> None:
    strategy = "channel" if group is None else "group"
    case = Case(4, strategy=strategy, group=group, dtype=(FLOAT16, BFLOAT16)[rows % 2], n=n, k=k, rows=rows)
    given = problem(case)
    assert_close_to_exact(TritonLinear().run(given.call, given.x, given.stored, given.bias), given)


@pytest.mark.parametrize("name", ["int4", "int4-g128", "int2-g64", "int3", "nvfp4", "int4-asymmetric"])
def test_parts_of_k_add_up(name: str) -> None:
    """K over warps, blocks and parts, with a last block that is not whole."""
    given = format_problem(name, BFLOAT16, 3, k=896)
    matrix = matrix_of(given)
    read, codes, _ = launch.units(matrix, BFLOAT16, given.stored) or pytest.fail("no units")
    plan = replace(
        few(3, given.call.shape, launch.few_format(codes, read), 1), batches=2, parts=2, block_n=16
    )
    result = launch.few(matrix, given.x, given.stored, given.bias, "silu", plan)
    assert result is not None
    silu = ACTIVATIONS["silu"]
    assert_close_to_exact(result, replace(given, exact=silu(given.exact), plain=silu(given.plain)))


def test_plans_change_nothing_but_roundings() -> None:
    given = format_problem("int4-g128", FLOAT16, 5, k=512)
    matrix = matrix_of(given)
    for plan in (Few(4, 4, 128, 32, 8, 2, 1), Few(4, 2, 64, 16, 16, 2, 1), Few(4, 1, 32, 64, 8, 2, 3)):
        result = launch.few(matrix, given.x, given.stored, given.bias, "", plan)
        assert result is not None
        assert_close_to_exact(result, given)
    for tile in (Tile(4, 64, 32, 128, 2), Tile(4, 32, 16, 64, 2), Tile(4, 16, 64, 32, 2)):
        result = launch.tiles(matrix, given.x, given.stored, given.bias, "", tile)
        assert result is not None
        assert_close_to_exact(result, given)


def test_decoding_takes_over_from_many_rows_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(Case(4, dtype=BFLOAT16, rows=512, n=8, k=64))
    for name in ("few", "tiles", "by_elements"):
        monkeypatch.delattr(launch, name)
    assert_close_to_exact(TritonLinear().run(given.call, given.x, given.stored, given.bias), given)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations(activation: str) -> None:
    given = problem(Case(4, dtype=BFLOAT16, rows=5, n=64))
    call = replace(given.call, operation="linear_activation", activation=activation)
    kernel = select(call).kernel
    assert isinstance(kernel, TritonLinearActivation)
    activated = ACTIVATIONS[activation]
    expected = replace(given, exact=activated(given.exact), plain=activated(given.plain))
    assert_close_to_exact(kernel.run(call, given.x, given.stored, given.bias), expected)
    assert torch.equal(reference(call, given.x, given.stored, given.bias), expected.plain)


def test_any_input_shape_and_layout() -> None:
    given = problem(Case(rows=6, dtype=FLOAT16))
    run = TritonLinear().run
    expected = run(given.call, given.x, given.stored, given.bias)
    deep = run(given.call, given.x.reshape(2, 3, -1), given.stored, given.bias)
    assert torch.equal(deep, expected.reshape(2, 3, -1))
    wide = torch.zeros(6, 200, dtype=FLOAT16)
    wide[:, 5:101] = given.x
    assert torch.equal(run(given.call, wide[:, 5:101], given.stored, given.bias), expected)
    assert torch.equal(run(given.call, given.x.T.contiguous().T, given.stored, given.bias), expected)
    one = run(given.call, given.x[0], given.stored, given.bias)
    assert_close_to_exact(one[None], replace(given, exact=given.exact[:1], plain=given.plain[:1]))
    assert run(given.call, given.x[:0], given.stored, given.bias).shape == (0, 40)


def test_words_that_lie_between_words() -> None:
    """A view of a file may begin at any byte."""
    given = problem(Case(4, dtype=BFLOAT16))
    moved = torch.empty(given.stored["carry"].numel() + 1, dtype=torch.uint8)[1:]
    moved = moved.copy_(given.stored["carry"].flatten()).view_as(given.stored["carry"])
    result = TritonLinear().run(given.call, given.x, {**given.stored, "carry": moved}, given.bias)
    assert_close_to_exact(result, given)


def test_gradients_reach_the_input_and_the_bias() -> None:
    assert_gradients(TritonLinear(), Case(dtype=BFLOAT16))


def test_gradients_pass_an_activation() -> None:
    given = problem(Case(4, rows=4))
    call = Call("linear_activation", given.call.representation, given.call.shape, FLOAT32, "cpu", "gelu")
    x = given.x.clone().requires_grad_()
    TritonLinearActivation().run(call, x, given.stored, given.bias).sum().backward()
    exact = given.x.double().requires_grad_()
    weight = decoded64(given)
    F.gelu(exact @ weight.T + given.bias.double()).sum().backward()
    assert (x.grad.double() - exact.grad).norm() <= 1e-5 * exact.grad.norm()


def test_formats_are_read_by_units() -> None:
    """The fast way, for every shipped format: what else there is was made to have none."""
    problems = {name: format_problem(name, BFLOAT16, 1) for name in FORMATS}
    slow = {
        name
        for name, given in problems.items()
        if launch.units(matrix_of(given), BFLOAT16, given.stored) is None
    }
    assert slow == {"int3-g20"}
