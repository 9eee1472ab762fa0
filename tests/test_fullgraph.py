"""torch.compile takes the train form of the demo's model whole, whatever the spec."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

import rhoc
from rhoc import specs
from rhoc.runtime.llama import Llama, LlamaShape

from .kinds import of_a_kind

TOKENS = torch.arange(2 * 8).reshape(2, 8) * 7 % 256


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch, as it traces
@pytest.mark.parametrize("name", [of_a_kind(name) for name in sorted(specs.names())])
def test_no_graph_breaks(name: str) -> None:
    torch.manual_seed(0)
    model = rhoc.compile(Llama(replace(LlamaShape.of_width(64), layers=1)), name).trainable()
    rhoc.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=10)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(1)
    loss = compiled(TOKENS).square().mean()
    loss.backward()
    assert not counters["graph_break"]
    found = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    expected = model(TOKENS).square().mean()
    expected.backward()
    assert torch.equal(loss, expected)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        assert (gradient is None) == (parameter.grad is None)
        assert gradient is None or torch.equal(gradient, parameter.grad)
