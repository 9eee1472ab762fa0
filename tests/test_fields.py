"""Fields of codes that are trained: gradients against numpy, every form after training, restarts, messages."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.runtime.errors import RequestError
from rhoc.runtime.learned import learned_parameters
from rhoc.runtime.llama import count_parameters
from rhoc.runtime.load import load_packed

pytestmark = pytest.mark.usefixtures("one_thread")

CODEBOOK = {"kind": "codebook", "in_group_size": 4, "nbits_per_codebook": 4, "codebook_dtype": "float32"}
SCALED = "codebook(3, num_codebooks=2, nbits_per_codebook=3, observer=rms, strategy=channel)"
ASYMMETRIC = {
    "kind": "quantize",
    "num_bits": 4,
    "symmetric": False,
    "strategy": "group",
    "group_size": 5,
    "zp_dtype": "float16",
}
CHAINS: dict[str, Any] = {
    "table": CODEBOOK,
    "tables and scales": SCALED,
    "known table": "codebook(2, nbits_per_codebook=4, source=gaussian)",
    "groups of rows": {**CODEBOOK, "nbits_per_codebook": 2, "scope": "group", "rows_per_codebook": 5},
    "product": "product(3)",
    "product of codes": "product(4, left=quantize(int8, channel))",
    "sum": f"product(3) + {SCALED}",
    "grid": "quantize(int4, group=8)",
    "levels": "quantize(nf4, group=16)",
    "zero points": ASYMMETRIC,
    "columns": "scale(columns) >> quantize(int4, group=8)",
}
ROTATED = f"hadamard(8) >> {SCALED}"


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)).to(dtype)


def document(weights: Any, **rule: Any) -> dict[str, Any]:
    rules = {"targets": "Linear", "weights": weights, "estimator": {"weights": "fields"}, **rule}
    return {"version": 1, "rules": rules}


def compiled_with(weights: Any, dtype: torch.dtype = torch.float64) -> Compiled:
    return rhoc.compile(net(dtype), document(weights))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    dtype = next(model.parameters()).dtype
    for number in numbers:
        optimizer.zero_grad()
        model(normal(12, 16, seed=number, dtype=dtype)).float().square().mean().backward()
        optimizer.step()


def trained(compiled: Compiled) -> nn.Module:
    model = compiled.trainable()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps(model, optimizer, range(5))
    return model


def gradients(weights: Any) -> tuple[dict[str, Tensor], dict[str, np.ndarray], np.ndarray]:
    """State and gradients of one layer, and dL/dR of its weight, for a loss that is linear in it."""
    layer = nn.Sequential(nn.Linear(16, 24, bias=False)).double()
    model = rhoc.compile(layer, document(weights)).trainable()
    x, upstream = normal(7, 16, seed=1), normal(7, 24, seed=2)
    (model(x) * upstream).sum().backward()
    found = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    return model.state_dict(), found, upstream.numpy().T @ x.numpy()


def test_the_gradient_of_a_table_entry_is_the_sum_over_its_vectors() -> None:
    state, found, grad = gradients(CODEBOOK)
    codes = state["0.weight_field_carry"].numpy().reshape(-1)
    expected = np.zeros((16, 4))
    np.add.at(expected, codes, grad.reshape(-1, 4))
    assert set(found) == {"0.weight_field_0_codebook"}
    np.testing.assert_allclose(found["0.weight_field_0_codebook"][0, 0], expected, rtol=1e-5, atol=1e-5)


def test_the_gradients_of_factors_are_those_of_a_product() -> None:
    state, found, grad = gradients("product(3)")
    left, right = (state[f"0.weight_field_0_{side}_carry"].numpy() for side in ("left", "right"))
    np.testing.assert_allclose(found["0.weight_field_0_left_carry"], grad @ right.T, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found["0.weight_field_0_right_carry"], left.T @ grad, rtol=1e-12, atol=1e-13)


def test_the_gradient_of_a_scale_is_the_sum_over_its_levels() -> None:
    state, found, grad = gradients("quantize(int4, channel)")
    levels = state["0.weight_field_carry"].numpy().astype(np.float64) - 8
    np.testing.assert_allclose(found["0.weight_field_0_scale"], (grad * levels).sum(1), rtol=1e-12)


@pytest.mark.usefixtures("no_kernels")  # which sum in another order
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_forms_agree_to_the_bit_before_and_after_training(name: str, dtype: torch.dtype) -> None:
    compiled = compiled_with(CHAINS[name], dtype)
    start, model, x = compiled.trainable().eval(), trained(compiled).eval(), normal(9, 16, dtype=dtype)
    with torch.no_grad():
        for form in (compiled.packed(), compiled.reference()):
            assert torch.equal(start(x), form(x))
        for form in (compiled.packed(model), compiled.reference(model)):
            assert torch.equal(model(x), form(x))
        assert not torch.equal(model(x), start(x))
    before = start.state_dict()
    for key, value in model.state_dict().items():
        codes = key.endswith("weight") or not value.is_floating_point()
        assert torch.equal(value, before[key]) == codes, key


def test_rotated_forms_agree_to_rounding() -> None:
    compiled = compiled_with(ROTATED)
    model, x = trained(compiled).eval(), normal(9, 16)
    assert torch.equal(compiled.reference(model)(x), model(x))
    torch.testing.assert_close(compiled.packed(model)(x), model(x), rtol=1e-13, atol=1e-14)


def test_weight_and_inputs_stay_rotated_together() -> None:
    inputs = "hadamard(8) >> quantize(int8, token, dynamic)"
    model = rhoc.compile(net(), document(ROTATED, input_activations=inputs)).trainable()
    apart = rhoc.compile(
        net(), document(ROTATED, input_activations=inputs, estimator={"weights": "ste"})
    ).trainable()
    x = normal(9, 16)
    torch.testing.assert_close(model(x), apart(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["table", "sum", "zero points"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch, as it traces
def test_compiled_whole_it_trains_to_the_same_bits(name: str) -> None:
    compiled = compiled_with(CHAINS[name])
    eager, other = compiled.trainable(), compiled.trainable()
    captured = torch.compile(other, backend="aot_eager", fullgraph=True)
    for model, parameters in ((eager, eager.parameters()), (captured, other.parameters())):
        steps(model, torch.optim.SGD(parameters, lr=1e-3), range(3))
    for key, value in eager.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_six_steps_are_three_and_three_after_a_restart() -> None:
    compiled = compiled_with(CHAINS["sum"])
    model, again = compiled.trainable(), compiled.trainable()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps(model, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    steps(model, optimizer, range(3, 6))
    resumed = torch.optim.Adam(again.parameters(), lr=1e-2)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    steps(again, resumed, range(3, 6))
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_sixteen_bits_are_trained_in_float32_and_stored_rounded() -> None:
    compiled = compiled_with({**CODEBOOK, "codebook_dtype": "float16"})
    model = trained(compiled)
    table = model.get_parameter("0.weight_field_0_codebook")
    assert table.dtype == torch.float32
    assert not torch.equal(table, table.half().float())
    stored = compiled.packed(model).state_dict()
    assert any(torch.equal(value, table.half()) for value in stored.values() if value.dtype == torch.float16)


def test_a_weight_read_twice_has_one_code_and_a_frozen_one_is_not_trained() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    student = rhoc.compile(model, document(CODEBOOK)).trainable()
    assert not student.get_parameter("0.weight_field_0_codebook").requires_grad
    assert student.get_parameter("2.weight_field_0_codebook").requires_grad
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).double()
    tied[2].weight = tied[0].weight
    form = rhoc.compile(tied, document(CODEBOOK)).trainable()
    assert form.get_parameter("0.weight_field_0_codebook") is form.get_parameter("2.weight_field_0_codebook")


def test_fields_are_no_parameters_of_the_model_and_survive_storage(tmp_path: Any) -> None:
    compiled = compiled_with(CHAINS["sum"])
    model, x = trained(compiled), normal(4, 16)
    assert count_parameters(model) == count_parameters(net())
    fields = {name for name, _ in model.named_parameters() if "_field_" in name}
    assert {name for name, _ in learned_parameters(model)} == fields
    compiled.save(tmp_path / "packed", model)
    loaded = load_packed(tmp_path / "packed", net())
    assert torch.equal(loaded(x), model.eval()(x))


REFUSED = {
    "others": (document(CODEBOOK, estimator={"weights": ["fields", "trust"]}), "leave out trust"),
    "sparse": (document("sparsify(0.5)"), "hands on numbers"),
    "sparse codes": (document("sparsify(0.5) >> quantize(int4)"), "sparsify(0.5) is none of them"),
    "trellis": (document("trellis(2)"), "is none of them; use 'ste' or 'trust'"),
    "network": (document({**CODEBOOK, "scope": "network"}), "is the network's"),
    "bytes": (document("quantize(int4, group=16, scale=e8m0)"), "are no such floats"),
    "nothing": (
        document(
            {"kind": "codebook", "in_group_size": 1, "nbits_per_codebook": 1, "table": [-1, 1]}
            | {"source": "table"}
        ),
        "keeps none",
    ),
    "random": (document("quantize(int4, stochastic)"), "draws at random"),
    "latent": (document(CODEBOOK, latent={"kind": "power", "alpha": 2.0}), "leave out one of the two"),
    "schedule": (
        document("quantize(int4, rms, clip=2.0)", schedule={"field": "weights.0.clip", "start": 1.0}),
        "a schedule of weights.0.clip",
    ),
    "inputs": (
        document(CODEBOOK, input_activations="quantize(int8, token, dynamic)", estimator="fields"),
        "'fields' trains what weights are encoded as, not input_activations",
    ),
}


@pytest.mark.parametrize(("rule", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        rhoc.compile(net(), rule)
    assert message in str(caught.value)


def test_fields_of_another_model_or_that_are_not_finite_are_refused() -> None:
    compiled = compiled_with(CODEBOOK)
    state = compiled.trainable().state_dict()
    name = "0.weight_field_0_codebook"
    with pytest.raises(RequestError, match=f"misses {name}"):
        compiled.packed({key: value for key, value in state.items() if key != name})
    with pytest.raises(RequestError, match=f"{name}: a trained field is NaN or infinite in float32"):
        compiled.packed({**state, name: torch.full_like(state[name], torch.nan)})
    with pytest.raises(RequestError, match=r"0\.weight: the trained model has a field of shape"):
        compiled.packed({**state, name: state[name][..., :2]})
