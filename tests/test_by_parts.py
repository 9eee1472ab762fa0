"""Linears on sums, products, splits and scaled weights: the parts' own kernels, and the whole weight's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rhoc.compiler.spec import load_spec
from rhoc.runtime import kernels
from rhoc.runtime.kernels import Call, Kernel, select
from rhoc.runtime.kernels.by_parts import LinearByParts, _select
from rhoc.runtime.representation import Representation

SHAPE = (24, 64)
TEXTS = (
    "quantize(int4,group=32) + quantize(int2,group=32)",
    "quantize(int4,channel) + quantize(int4,channel) + sparsify(0.9, storage=csr)",
    "(hadamard(64) >> quantize(int4,channel)) + (hadamard(16) >> quantize(int3,channel))",
    "product(8,left=W8A16,right=W8A16) + quantize(int4,group=32)",
    "product(8,left=hadamard(8) >> quantize(int8,channel),right=hadamard(64) >> quantize(int4,channel))",
    "product(8)",
    "split(0.1, selected=W8A16, rest=quantize(int4,channel))",
    "split(0.2, selected=W8A16, rest=quantize(int4,channel), by=first)",
    "split(0.1, selected=W8A16, rest=quantize(int4,channel), along=rows, by=absmax)",
    "split(0.5, selected=quantize(int8,channel) + quantize(int8,channel), rest=quantize(int4,channel), along=rows)",
    "scale(columns) >> quantize(int4, channel)",
    "scale(columns, scale_dtype=e8m0) >> scale(rows) >> quantize(int4, channel)",
    "scale(rows) >> product(4) + quantize(int4, channel)",
)


class Plain(Kernel):
    """Takes every chain that is not made of parts, in float64, and counts the numbers that it multiplied."""

    name: ClassVar[str] = "plain"
    operation: ClassVar[str] = "linear"

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def refuse(self, call: Call) -> str | None:
        made = {"sum", "product", "split", "scale"} & {stage.kind for stage in call.representation.stages}
        return "made of parts" if made else None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        code = call.representation.unpack(stored, call.shape, call.dtype)
        return {"ready": call.representation.restore(code)}

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        self.numbers.append(call.shape[0] * call.shape[1])
        weight = stored["ready"] if "ready" in stored else self.prepare(call, stored)["ready"]
        return F.linear(x, weight.to(x.dtype), bias)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    kernel = Plain()
    monkeypatch.setattr(kernels, "KERNELS", (kernel, *kernels.KERNELS))
    _select.cache_clear()
    yield kernel
    _select.cache_clear()


def weight_of(text: str) -> Representation:
    found = load_spec(text).rules[0].weight_representation
    assert found is not None
    return found.core


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prepared", [True, False])
def test_the_parts_together_are_the_whole(text: str, prepared: bool, plain: Plain) -> None:
    generator = torch.Generator().manual_seed(0)
    core = weight_of(text)
    call = Call("linear", core, SHAPE, torch.float64, "cpu")
    stored = core.pack(core.encode(torch.randn(SHAPE, generator=generator, dtype=torch.float64)))
    whole = core.restore(core.unpack(stored, SHAPE, torch.float64)).double()
    kernel = select(call).kernel
    assert kernel.name == "linear_by_parts"
    x = torch.randn(2, 3, SHAPE[1], generator=generator, dtype=torch.float64)
    bias = torch.randn(SHAPE[0], generator=generator, dtype=torch.float64)
    fields = kernel.prepare(call, stored) if prepared else stored
    for added in (None, bias):
        result = kernel.run(call, x, fields, added)
        torch.testing.assert_close(result, F.linear(x, whole, added), rtol=1e-6, atol=1e-6)
    assert plain.numbers


def test_a_product_never_makes_the_whole_weight(plain: Plain) -> None:
    core = weight_of("product(4)")
    call = Call("linear", core, SHAPE, torch.float64, "cpu")
    stored = core.pack(core.encode(torch.randn(SHAPE, dtype=torch.float64)))
    select(call).kernel.run(call, torch.randn(1, 64, dtype=torch.float64), stored, None)
    assert plain.numbers == [4 * 64, 24 * 4]


def test_refusals() -> None:
    call = Call("linear", weight_of(TEXTS[0]), SHAPE, torch.float64, "cpu")
    assert LinearByParts().refuse(call) == "every part of it would be decoded"
    single = Call("linear", weight_of("quantize(int4,channel)"), SHAPE, torch.float64, "cpu")
    reason = LinearByParts().refuse(single)
    assert reason == "quantize(int4, twos, channel, absmax) is not a sum, product or split, nor scaled"
    assert "not a matrix's" in str(
        LinearByParts().refuse(Call("linear", single.representation, (3, 4, 5), torch.float64, "cpu"))
    )


def test_gradients_reach_the_input_and_the_bias(plain: Plain) -> None:
    core = weight_of("split(0.1, selected=W8A16, rest=quantize(int4,channel)) + quantize(int2, channel)")
    call = Call("linear", core, SHAPE, torch.float64, "cpu")
    stored = core.pack(core.encode(torch.randn(SHAPE, dtype=torch.float64)))
    whole = core.restore(core.unpack(stored, SHAPE, torch.float64)).double()
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    select(call).kernel.run(call, x, stored, bias).sum().backward()
    torch.testing.assert_close(x.grad, whole.sum(0).expand(3, 64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bias.grad, torch.full((24,), 3.0, dtype=torch.float64))
