"""Products with a decoded weight where a processor has half precisions, and where it has not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rhoc.runtime.kernels import Call, dense_product
from rhoc.runtime.kernels.decode_grouped import DecodeGrouped
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.kernels.dense_product import dense_linear, product_dtype
from rhoc.runtime.kernels.fixed_weight import with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

HALVES = (torch.bfloat16, torch.float16)
FEW, MANY = 7, 8


@pytest.fixture(params=[False, True], ids=["has halves", "has none"])
def lacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor is taken to have no instructions for half precisions."""
    monkeypatch.setattr(dense_product, "SLOW", frozenset(HALVES if request.param else ()))
    return bool(request.param)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_the_dtype_of_a_product(dtype: torch.dtype, lacking: bool) -> None:
    wide = torch.float32 if lacking and dtype in HALVES else dtype
    assert product_dtype(torch.zeros(2, 4, 64, dtype=dtype)) == wide
    assert product_dtype(torch.zeros(FEW, 64, dtype=dtype)) == dtype
    assert product_dtype(torch.zeros(2, 4, 64, dtype=dtype, device="meta")) == dtype


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("rows", [1, FEW, MANY, 70])
def test_it_is_rounded_once(dtype: torch.dtype, rows: int, lacking: bool) -> None:
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((rows, 96), (40, 96), (40,)))
    exact = x.double() @ weight.double().T + bias.double()
    result = dense_linear(x, weight, bias)
    assert result.dtype == dtype
    error = (result.double() - exact).norm()
    assert error <= 1.01 * (exact.to(dtype).double() - exact).norm() or not lacking or rows < MANY
    assert error <= 2 * (F.linear(x, weight, bias).double() - exact).norm()
    if product_dtype(x) == torch.float32:
        assert torch.equal(dense_linear(x, weight.float(), bias), result)


def test_gradients(lacking: bool) -> None:
    x, weight, bias = (torch.randn(size).bfloat16() for size in ((16, 96), (40, 96), (40,)))
    grad = torch.randn(16, 40).bfloat16()
    exact = grad.double() @ weight.double()
    for run in (
        lambda x, b: dense_linear(x, weight, b),
        lambda x, b: with_gradient(lambda x, b: dense_linear(x, weight, b), weight.float, x, b),
    ):
        given = x.clone().requires_grad_(), bias.clone().requires_grad_()
        run(*given).backward(grad)
        to_x, to_bias = (each.grad for each in given)
        assert to_x is not None
        assert to_bias is not None
        assert (to_x.double() - exact).norm() <= 2 * (exact.bfloat16().double() - exact).norm()
        torch.testing.assert_close(to_bias, grad.float().sum(0).bfloat16(), rtol=2e-2, atol=2e-2)


def test_it_is_traced_whole(lacking: bool) -> None:
    x, weight = torch.randn(16, 96).bfloat16(), torch.randn(40, 96).bfloat16()
    traced = torch.compile(dense_linear, fullgraph=True, backend="eager")
    assert torch.equal(traced(x, weight), dense_linear(x, weight))


def test_kernels_that_decode_the_weight(lacking: bool) -> None:
    chain = Representation((Quantize(4, strategy="channel"),)).core
    call = Call("linear", chain, (40, 96), torch.bfloat16, "cpu")
    weight, x = torch.randn(2, 40, 96).bfloat16(), torch.randn(20, 96).bfloat16()
    stored = chain.pack(chain.encode(weight[0]))
    dense = chain.decode(chain.unpack(stored, (40, 96), torch.bfloat16))
    assert torch.equal(DecodeLinear().run(call, x, stored, None), dense_linear(x, dense))
    stored = chain.pack(chain.encode(weight))
    dense = chain.decode(chain.unpack(stored, (2, 40, 96), torch.bfloat16))
    stored["offsets"] = torch.tensor([9, 18])
    grouped = DecodeGrouped().run(
        replace(call, operation="grouped_linear", shape=(2, 40, 96)), x, stored, None
    )
    parts = [dense_linear(x[:9], dense[0]), dense_linear(x[9:18], dense[1]), x.new_zeros(2, 40)]
    assert torch.equal(grouped, torch.cat(parts))
