"""Packed models with fused operations are what they were, and kernels of these operations are chosen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import rhoc
from rhoc.passes.fuse import Fuse
from rhoc.runtime import kernels
from rhoc.runtime.errors import RequestError
from rhoc.runtime.fused import NormEnter, gated_linear, linear_activation
from rhoc.runtime.kernels import Call, Kernel, select
from rhoc.runtime.kernels.neighbours import Norm
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import Packed

from .test_fuse import INPUT, PLAIN, SIZE, Block, Wide, llama_case, numbers, packed_graph

pytestmark = pytest.mark.usefixtures("no_kernels")  # what fuses is asked of graphs, not of the machine


def test_packed_models_are_what_they_were(tmp_path: Path) -> None:
    model, tokens = llama_case()
    compiled = rhoc.compile(model, "w8a8")
    packed = compiled.packed()
    assert sum(isinstance(module, NormEnter) for module in packed.modules()) == 2
    compiled.save(tmp_path / "out")
    loaded = load_packed(tmp_path / "out", llama_case()[0])  # runs module by module, without a graph
    assert list(packed.state_dict()) == list(loaded.state_dict())
    with torch.no_grad():
        expected = loaded(tokens)
        for each in (packed, copy.deepcopy(packed)):
            assert torch.equal(each(tokens), expected)
        twin = copy.deepcopy(packed)
        twin.load_state_dict(packed.state_dict())
        assert torch.equal(twin.to(torch.float64)(tokens), loaded.to(torch.float64)(tokens))
    with pytest.raises(RequestError, match="where its hooks would never run"):
        packed.layers[0].input_layernorm.register_forward_hook(lambda *args: None)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_torch_can_compile_them() -> None:
    torch.manual_seed(0)
    packed = rhoc.compile(Block(), "w8a8").packed()
    assert any(isinstance(module, NormEnter) for module in packed.modules())
    with torch.no_grad():
        assert torch.equal(torch.compile(packed, backend="eager")(numbers()), packed(numbers()))


@dataclass(frozen=True)
class Sevens(Kernel):
    """Takes one operation in float32 and gives sevens."""

    operation: str  # type: ignore[misc]
    name: ClassVar[str] = "sevens"

    def refuse(self, call: Call) -> str | None:
        return None if call.dtype == torch.float32 else "only float32"

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        assert {name.partition(".")[0] for name in stored} == KEYS[call.operation]
        return x.new_full((*x.shape[:-1], call.shape[0]), 7.0)


KEYS = {
    "linear_activation": {"carry", "0"},
    "gated_linear": {"gate", "up", "bias"},
    "norm_enter": {"weight"},
}


@pytest.mark.parametrize("operation", KEYS)
def test_a_kernel_of_a_fused_operation_is_chosen_where_it_runs(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "KERNELS", (Sevens(operation), *kernels.KERNELS))
    weights = [Packed.of(numbers(SIZE, SIZE), PLAIN) for _ in range(2)]
    bias = torch.ones(SIZE)
    gm = packed_graph(Wide(lambda m, x: m.a(m.norm(x))))
    Fuse().rewrite(gm)
    (norm,) = [module for module in gm.modules() if isinstance(module, NormEnter)]
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "linear_activation": lambda x: linear_activation(x, weights[0], bias.to(x.dtype), activation="silu"),
        "gated_linear": lambda x: gated_linear(x, *weights, bias.to(x.dtype), activation="silu"),
        "norm_enter": lambda x: norm(x, bias.to(x.dtype)),
    }
    assert bool((runs[operation](numbers()) == 7).all())
    assert not bool((runs[operation](numbers(dtype=torch.float64)) == 7).any())


def test_fused_operations_without_a_kernel_are_composed_and_say_why() -> None:
    weight = Packed.of(numbers(SIZE, SIZE), PLAIN)
    alone, fused = weight.selection("linear"), weight.selection("linear_activation", "silu")
    assert fused.kernel.name == "composed"
    assert fused.refusals == alone.refusals != ()
    call = weight.chosen("gated_linear", torch.float32, torch.device("cpu"), "silu")[0]
    assert select(call).kernel.name == "composed"
    norm = Norm("rms_norm", (SIZE,), 1e-5)
    call = replace(call, operation="norm_enter", representation=INPUT, activation="", norm=norm)
    assert (select(call).kernel.name, select(call).refusals) == ("composed", ())


def test_composed_operations_share_what_a_kernel_prepared() -> None:
    """A weight that is used fused and alone is prepared once."""
    weight = Packed.of(numbers(32, 32), PLAIN).to(torch.bfloat16)
    prepared = [
        weight.prepared(*weight.chosen(operation, torch.bfloat16, torch.device("cpu"), activation))
        for operation, activation in (("linear", ""), ("linear_activation", "relu"), ("gated_linear", "silu"))
    ]
    assert prepared[0] is prepared[1] is prepared[2]
