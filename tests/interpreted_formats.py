"""Triton kernels of formats on a CPU: run by `test_gpu_formats.py` in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rhoc.runtime.kernels import select
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.kernels.gpu import tiled
from rhoc.runtime.kernels.gpu.codebook_linear import CodebookLinear
from rhoc.runtime.kernels.gpu.sparse_linear import SparseLinear
from rhoc.runtime.kernels.gpu.tiled import Cut, TiledLinear, cut_of, product

from .format_cases import (
    BFLOAT16,
    CASES,
    CODEBOOK,
    FLOAT16,
    FLOAT32,
    LOW_RANK,
    SPARSE,
    TRELLIS,
    Case,
    assert_close_to_exact,
    problem,
)
from .interpreter import take_bounds_from_arrays

take_bounds_from_arrays()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_as_good_as_the_plain_version(case: Case) -> None:
    given = problem(case)
    kernel = select(given.call).kernel
    assert kernel.name == case.kernel
    fields = kernel.prepare(given.call, given.stored) if case.prepared else given.stored
    assert_close_to_exact(kernel.run(given.call, given.x, fields, given.bias), given)


SOME = (
    Case(SPARSE, "sparsify(2:4) >> quantize(int4, group=32)", FLOAT16, n=9, k=84),
    Case(SPARSE, "sparsify(0.6)", FLOAT32, n=9, k=300),
    Case(CODEBOOK, "codebook(4, num_codebooks=2, nbits_per_codebook=5)", n=9, k=84),
    Case(TRELLIS, "trellis(3, state_bits=10, code=1mad, strategy=channel)", n=9, k=88),
)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_many_rows_go_by_the_decoded_weight(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number is that of the stages, rounded once."""
    given = problem(case)
    kernel = select(given.call).kernel
    assert isinstance(kernel, TiledLinear)
    core = given.call.representation
    decoded = core.decode(core.unpack(given.stored, given.call.shape, case.dtype))
    found = kernel._decoded(given.call, kernel.prepare(given.call, given.stored))
    torch.testing.assert_close(found, decoded, rtol=torch.finfo(case.dtype).eps, atol=1e-6)
    monkeypatch.setattr(tiled, "FUSED_ROWS", 2)
    assert_close_to_exact(kernel.run(given.call, given.x, given.stored, given.bias), given)


@pytest.mark.parametrize("text", ["sparsify(2:4) >> quantize(int4, group=64)", "sparsify(0.5)"])
def test_parts_of_k_add_up(text: str) -> None:
    given = problem(Case(SPARSE, text, FLOAT32, k=1344, n=20, rows=2))
    kernel = SparseLinear()
    coded = kernel.coded(given.call, kernel.prepare(given.call, given.stored), FLOAT32)
    for cut in (Cut(8, 16, 2, 3, 2), Cut(16, 32, 1, 7, 2), Cut(8, 32, 4, 2, 3)):
        assert_close_to_exact(product(coded, given.x, given.bias, cut=cut), given)


def test_parts_of_a_gathered_row_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhoc.runtime.kernels.gpu import codebook_linear

    monkeypatch.setattr(codebook_linear, "_processors", lambda x: 3)
    text = "codebook(4, source=gaussian, nbits_per_codebook=8, strategy=channel)"
    given = problem(Case(CODEBOOK, text, FLOAT16, k=644, n=20, rows=1))
    assert_close_to_exact(CodebookLinear().run(given.call, given.x, given.stored, given.bias), given)


def test_low_rank_is_added_once_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "_processors", lambda x: 4)
    given = problem(Case(LOW_RANK, "product(8) + quantize(int4, group=32)", FLOAT32, k=2048, n=20, rows=2))
    kernel = select(given.call).kernel
    cuts = []
    monkeypatch.setattr(tiled, "cut_of", lambda *given: cuts.append(cut_of(*given)) or cuts[-1])
    assert_close_to_exact(kernel.run(given.call, given.x, given.stored, given.bias), given)
    assert cuts[-1].parts > 1


@pytest.mark.parametrize("case", [replace(case, rows=6) for case in SOME], ids=str)
def test_any_input_shape_and_layout(case: Case) -> None:
    given = problem(case)
    kernel = select(given.call).kernel
    fields = kernel.prepare(given.call, given.stored)

    def run(x: torch.Tensor) -> torch.Tensor:
        return kernel.run(given.call, x, fields, given.bias)

    expected = run(given.x)
    assert torch.equal(run(given.x.reshape(2, 3, -1)), expected.reshape(2, 3, -1))
    wide = torch.zeros(6, 400, dtype=case.dtype)
    wide[:, 5 : 5 + case.k] = given.x
    assert torch.equal(run(wide[:, 5 : 5 + case.k]), expected)
    assert torch.equal(run(given.x.T.contiguous().T), expected)
    assert run(given.x[0]).shape == (case.n,)
    assert run(given.x[:0]).shape == (0, case.n)


@pytest.mark.parametrize("text", ["sparsify(2:4)", "product(4) + quantize(int4, channel)"])
def test_gradients_reach_the_input_and_the_bias(text: str) -> None:
    given = problem(Case("", text, BFLOAT16, k=64))
    assert given.bias is not None

    def gradients(kernel: object) -> tuple[torch.Tensor, torch.Tensor]:
        x, bias = given.x.clone().requires_grad_(), given.bias.clone().requires_grad_()
        kernel.run(given.call, x, given.stored, bias).float().square().sum().backward()
        return x.grad.double(), bias.grad.double()

    found, expected = gradients(select(given.call).kernel), gradients(DecodeLinear())
    for grad, plain in zip(found, expected, strict=True):
        assert (grad - plain).norm() < 0.02 * plain.norm()
