"""Models with learned step sizes: compiled, restarted, in every form after training, and what is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.spec import load_spec
from rhoc.runtime.errors import RequestError
from rhoc.runtime.estimators import Lsq
from rhoc.runtime.gridded import gridded
from rhoc.runtime.learned import LearnedProject, learned_parameters
from rhoc.runtime.llama import count_parameters
from rhoc.runtime.load import load_packed
from rhoc.runtime.moving_average import MovingAverage
from rhoc.runtime.packed import packed_weights
from rhoc.runtime.projection import latent_parameters
from rhoc.runtime.representation import Representation
from rhoc.runtime.schedules import advance
from rhoc.runtime.stages import Quantize, Sparsify

from .models import CASES

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = {"kind": "quantize", "num_bits": 4, "strategy": "channel", "observer": "learned"}
INPUTS = {"kind": "quantize", "num_bits": 4, "strategy": "tensor", "observer": "learned"}
ESTIMATORS: dict[str, tuple[str, str]] = {
    "lsq": ("lsq", "lsq"),
    "lsq_plus": ("lsq_plus", "lsq_plus"),
    "pact": ("lsq", "pact"),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def document(weights: Any, inputs: Any, estimators: tuple[str, str], **rule: Any) -> dict[str, Any]:
    slots = {"weights": weights, "input_activations": inputs}
    estimator = dict(zip(slots, estimators, strict=True))
    filled = {slot: chain for slot, chain in slots.items() if chain is not None}
    estimator = {slot: estimator[slot] for slot in filled}
    return {"version": 1, "rules": {"targets": "Linear", **filled, "estimator": estimator, **rule}}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)).double()


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    model(normal(12, 16, seed=number)).square().mean().backward()
    optimizer.step()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


@pytest.mark.parametrize("name", ESTIMATORS)
def test_ten_steps_are_five_and_five_after_a_restart(name: str) -> None:
    compiled = rhoc.compile(net(), document(WEIGHTS, INPUTS, ESTIMATORS[name]))
    model = compiled.trainable()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start = copy.deepcopy(model.state_dict())
    for number in range(5):
        step_of(model, optimizer, number)
    saved = state(model, optimizer)
    for number in range(5, 10):
        step_of(model, optimizer, number)
    again = compiled.trainable()
    resumed = torch.optim.Adam(again.parameters(), lr=1e-2)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for number in range(5, 10):
        step_of(again, resumed, number)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
        assert not torch.equal(value, start[key]), key
        assert torch.isfinite(value).all(), key


@pytest.mark.parametrize("name", ESTIMATORS)
def test_compiled_whole_it_trains_to_the_same_bits(name: str) -> None:
    rotated = [{"kind": "hadamard", "block": 8}]
    rule = document([*rotated, WEIGHTS], [*rotated, INPUTS], ESTIMATORS[name])
    compiled = rhoc.compile(net(), rule)
    eager, other = compiled.trainable(), compiled.trainable()
    captured = torch.compile(other, backend="aot_eager", fullgraph=True)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (eager, other)]
    for number in range(4):  # the first starts the steps of inputs, inside of the graph
        step_of(eager, optimizers[0], number)
        step_of(captured, optimizers[1], number)
    for key, value in eager.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    x = normal(3, 16)
    assert torch.equal(eager.eval()(x), captured.eval()(x))


def test_a_step_that_is_used_twice_is_captured() -> None:
    case = CASES["tied"]
    compiled = rhoc.compile(case.model(), document(WEIGHTS, INPUTS, ("lsq", "lsq_plus")))
    eager, other = compiled.trainable(), compiled.trainable()
    results = []
    for model in (eager, torch.compile(other, backend="aot_eager", fullgraph=True)):
        model(case.inputs(3)).square().mean().backward()
    for (name, ours), theirs in zip(eager.named_parameters(), other.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)
        results.append(ours)
    assert len(results) == len(list(other.parameters()))


def test_checkpointed_activations_give_the_same_gradients() -> None:
    compiled = rhoc.compile(net(), document(WEIGHTS, INPUTS, ("lsq", "lsq_plus")))
    plain, other = compiled.trainable(), compiled.trainable()
    x = normal(12, 16)
    plain(x).square().mean().backward()
    for reentrant in (False, True):
        other.zero_grad()
        checkpoint(other, x.clone().requires_grad_(), use_reentrant=reentrant).square().mean().backward()
        for (name, ours), theirs in zip(plain.named_parameters(), other.parameters(), strict=True):
            assert ours.grad is not None
            assert torch.equal(ours.grad, theirs.grad), name


def trained(compiled: Compiled, inputs: Any, steps: int = 3) -> nn.Module:
    model = compiled.trainable()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for number in range(steps):
        optimizer.zero_grad()
        model(inputs(3 + number)).float().square().mean().backward()
        optimizer.step()
    return model


TARGETS = {
    "functional": ["Functional"],
    "tied": ["Linear", "Embedding"],
    "tied_by_hand": ["Linear", "Embedding"],
    "encoder": ["Linear", "MultiheadAttention"],
}


@pytest.mark.parametrize("estimators", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("name", CASES)
def test_forms_agree_after_training(name: str, estimators: tuple[str, str]) -> None:
    case = CASES[name]
    rotated = [{"kind": "hadamard", "block": 8}]
    rule = document([*rotated, WEIGHTS], [*rotated, INPUTS], estimators)
    rule["rules"]["targets"] = TARGETS.get(name, ["Linear"])
    compiled = rhoc.compile(case.model(), rule)
    fresh, x = compiled.trainable(), case.inputs(4)
    student = trained(compiled, case.inputs).eval()
    with torch.no_grad():
        tolerance = 1e-13 * float(student(x).abs().max())
        for other in (compiled.packed(student), compiled.reference(student), copy.deepcopy(student)):
            torch.testing.assert_close(other(x), student(x), rtol=0, atol=tolerance)
        assert torch.equal(compiled.packed(student.state_dict())(x), compiled.packed(student)(x))
        torch.testing.assert_close(compiled.packed()(x), fresh.eval()(x), rtol=0, atol=tolerance)
        assert not torch.allclose(student(x), fresh(x), rtol=1e-3)


@pytest.mark.usefixtures("no_kernels")  # which sum in another order
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", ["lsq-int4", "lsq-int2-a2", "lsq-plus-int4-a4", "pact-int4-a4"])
def test_packed_is_what_was_trained_to_the_bit(spec: str, dtype: torch.dtype, tmp_path: Path) -> None:
    case = CASES["llama"]
    compiled = rhoc.compile(case.model(dtype), load_spec(spec))
    student, x = trained(compiled, case.inputs).eval(), case.inputs(4)
    packed = compiled.packed(student)
    compiled.save(tmp_path / "model", student)
    loaded = load_packed(tmp_path / "model", case.model(dtype))
    with torch.no_grad():
        assert torch.equal(packed(x), student(x))
        assert torch.equal(loaded(x), student(x))
    for path, weight in packed_weights(packed).items():
        steps = student.get_parameter(f"{path}_step").detach()
        assert torch.equal(weight.fields()["0.scale"], steps.abs().to(dtype).reshape(-1))
        given = [stage for stage in weight.input.stages if isinstance(stage, Quantize)]
        assert all(stage.step is not None for stage in given)
        assert bool(given) == (spec != "lsq-int4")


def test_steps_are_parameters_beside_their_weights() -> None:
    case = CASES["llama"]
    compiled = rhoc.compile(case.model(), document(WEIGHTS, INPUTS, ("lsq", "lsq")))
    model = compiled.trainable()
    names = dict(model.named_parameters(remove_duplicate=False))
    before = "layers.0.self_attn"
    assert names[f"{before}.q_proj.weight_step"].shape == (16,)
    shared = [names[f"{before}.{name}_proj.weight_input_step"] for name in ("q", "k", "v")]
    assert all(step is shared[0] for step in shared)  # they read one input
    assert names[f"{before}.o_proj.weight_input_step"] is not shared[0]
    steps = [name for name in names if "step" in name]
    assert {id(names[name]) for name in steps} == {id(p) for _, p in learned_parameters(model)}
    assert len(steps) == len(names) - len(list(case.model().parameters()))
    assert all(names[name].dim() == 1 for name in steps)
    assert {name for name, _, _ in latent_parameters(model)} == {
        n[:-5] for n in names if n.endswith("weight_step")
    }
    copied = copy.deepcopy(model).to(torch.float32)
    assert {p.dtype for p in copied.parameters()} == {torch.float32}
    assert copied(case.inputs(2)).dtype == torch.float32
    copied.load_state_dict(model.state_dict())


def test_a_frozen_weight_has_frozen_steps() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    student = rhoc.compile(model, document(WEIGHTS, INPUTS, ("lsq", "lsq"))).trainable()
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert frozen == {"0.weight", "0.weight_step", "0.weight_input_step"}
    student(normal(4, 16)).sum().backward()
    assert not student.get_parameter("0.weight_input_step").isnan().any()


def test_what_is_said_of_a_training_goes_by_the_learned_steps() -> None:
    rotated = {"kind": "hadamard", "block": 8}
    compiled = rhoc.compile(net(), document([rotated, WEIGHTS], INPUTS, ("lsq", "lsq")))
    student = compiled.trainable()
    assert count_parameters(student) == count_parameters(net())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("weight_step"):
                parameter.mul_(torch.linspace(0.4, 1.5, len(parameter)))
    found = {weight.name: weight for weight in gridded(student)}
    assert set(found) == {"0.weight", "2.weight"}
    packed = packed_weights(compiled.packed(student))
    for name, weight in found.items():
        step, width = student.get_parameter(f"{name}_step").detach(), weight.cell_width()
        assert width is not None
        assert float(width) == pytest.approx(float(step.mean()), rel=1e-12)
        codes = packed[name].representation.unpack(
            packed[name].fields(), tuple(packed[name].shape), torch.float64
        )
        assert torch.equal(weight.ranks(), codes.carry.to(torch.int16))


def test_an_average_of_steps_begins_when_they_have_a_value() -> None:
    student = rhoc.compile(net(), document(WEIGHTS, INPUTS, ("lsq", "lsq"))).trainable()
    average = MovingAverage(student, 0.5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    seen: dict[str, list[Tensor]] = {}
    for number in range(3):
        step_of(student, optimizer, number)
        average.update()
        for name, parameter in student.named_parameters():
            seen.setdefault(name, []).append(parameter.detach().clone())
    for name in ("0.weight_input_step", "2.weight_input_step"):
        first, second, third = seen[name]
        expected = ((first + second) / 2 + third) / 2
        torch.testing.assert_close(average.state()[name], expected, rtol=1e-14, atol=0)


def test_a_latent_weight_starts_with_the_steps_of_what_is_read() -> None:
    rule = document(WEIGHTS, None, ("lsq", "lsq"), latent={"kind": "power", "alpha": 2.0})
    model = net()
    student = rhoc.compile(model, rule).trainable()
    expected = 2 * model[0].weight.detach().abs().mean(-1) / math.sqrt(7)
    torch.testing.assert_close(student.get_parameter("0.weight_step").detach(), expected, rtol=1e-12, atol=0)


# Messages.


def chain(**options: Any) -> dict[str, Any]:
    return {"kind": "quantize", "num_bits": 4, **options}


REFUSED = {
    "others": (
        document(WEIGHTS, None, (["lsq", "trust"], "")),
        "'lsq' says alone how gradients pass; leave out trust",
    ),  # type: ignore[arg-type]
    "sparse": (
        document([{"kind": "sparsify", "sparsity": 0.5}, chain()], None, ("lsq", "")),
        "'lsq' learns the step of one grid behind rotations",
    ),
    "zero point": (document(chain(symmetric=False), None, ("lsq", "")), "without a zero point"),
    "powers of two": (
        document(chain(scale_dtype="e8m0"), None, ("lsq", "")),
        "stored as floats by themselves",
    ),
    "random": (document(chain(rounding="stochastic"), None, ("lsq", "")), "draws at random"),
    "signed": (document(chain(absmax_rule="signed"), None, ("lsq", "")), "have signs"),
    "no integers": (document(chain(type="float"), None, ("lsq_plus", "")), "leave the offset to 'lsq'"),
    "given": (document(chain(step=0.1), None, ("lsq", "")), "that of the grid is given"),
    "tokens": (document(WEIGHTS, chain(strategy="token"), ("lsq", "lsq")), "one for each token"),
    "groups": (
        document(WEIGHTS, chain(strategy="group", group_size=4), ("lsq", "lsq")),
        "'lsq' learns one step of all inputs, not one for each group; use strategy: tensor",
    ),
    "dynamic": (
        document(WEIGHTS, chain(dynamic=True), ("lsq", "pact")),
        "is the same for every input; write dynamic: false",
    ),
    "nothing learned": (
        document(WEIGHTS, INPUTS, ("lsq", "ste")),
        "or learn one: estimator: {input_activations: lsq}",
    ),
    "moved weight": (document(chain(step=0.1, offset=0.1), None, ("ste", "")), "moved by a zero point"),
    "given and dynamic": (
        document(None, chain(step=0.1, dynamic=True), ("", "ste")),
        "is not measured again; remove it",
    ),
}


@pytest.mark.parametrize(("rule", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        rhoc.compile(net(), rule)
    assert message in str(caught.value)


def test_other_slots_learn_nothing() -> None:
    rule = document(WEIGHTS, None, ("lsq", ""), output_activations=chain(dynamic=True))
    rule["rules"]["estimator"]["output_activations"] = "lsq"
    with pytest.raises(
        RequestError, match="learns steps of weights and of input_activations, not of output_act"
    ):
        rhoc.compile(net(), rule)


def test_a_computed_weight_is_named() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    with pytest.raises(
        RequestError, match=r"0\.weight: parametrizations compute it, and lsq needs a parameter"
    ):
        rhoc.compile(model, document(WEIGHTS, None, ("lsq", "")))


def test_a_name_that_is_taken_is_named() -> None:
    model = net()
    model[0].register_buffer("weight_step", torch.zeros(1))
    with pytest.raises(RequestError, match=r"0\.weight: the model has a 'weight_step' there"):
        rhoc.compile(model, document(WEIGHTS, None, ("lsq", ""))).trainable()


def test_trained_steps_that_do_not_fit_are_named() -> None:
    compiled = rhoc.compile(net(), document(WEIGHTS, INPUTS, ("lsq", "lsq")))
    student = compiled.trainable()
    student(normal(4, 16))
    found = student.state_dict()
    with pytest.raises(
        RequestError, match=r"misses 0\.weight_step, 0\.weight_input_step, 2\.weight_step and 1 more"
    ):
        compiled.packed(net().state_dict())
    with pytest.raises(RequestError, match=r"0\.weight_step: the trained model has 3 steps, and .* has 24"):
        compiled.packed({**found, "0.weight_step": torch.ones(3)})
    with pytest.raises(RequestError, match=r"0\.weight_step: a learned step is NaN or infinite"):
        compiled.packed({**found, "0.weight_step": found["0.weight_step"] * math.inf})
    with pytest.raises(RequestError, match=r"has the unexpected 0\.weight_stop"):
        compiled.packed({**found, "0.weight_stop": torch.ones(3)})
    scheduled = document(chain(strategy="group", group_size=4), None, ("lsq", ""))
    scheduled["rules"]["schedule"] = {"field": "weights.0.group_size", "start": 8}
    model = rhoc.compile(net(), scheduled).trainable()
    advance(model, 0, 10)
    with pytest.raises(RequestError, match=r"learned steps, and .* leave sizes of groups out of schedules"):
        model(normal(4, 16))


def test_sparse_chains_are_refused_by_the_module_too() -> None:
    with pytest.raises(ValueError, match="'lsq' learns the step of one grid"):
        LearnedProject(Representation((Sparsify(0.5), Quantize(4))), (Lsq(),))
