"""The three forms of a compiled model agree, train, and keep what they promise, for every shipped spec."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc import specs
from rhoc.compiler.compile import Compiled
from rhoc.compiler.learned import learned_names
from rhoc.compiler.spec import load_spec
from rhoc.runtime.errors import RequestError
from rhoc.runtime.packed import Packed, packed_weights
from rhoc.runtime.projection import Project
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize

from .kinds import of_a_kind, one_of_each
from .models import CASES, Case, floats, mlp

TARGETS = {
    "functional": ["Functional"],
    "tied": ["Linear", "Embedding"],
    "tied_by_hand": ["Linear", "Embedding"],
}


LONG = ("qtip", "squeeze-llm", "caldera")  # seconds for a model: on two small ones only


SMALL = ("mlp", "tied")  # models that every spec is tried on, others with one of each kind


def case_of(spec: str, *before: str) -> object:
    """A case of a test; the trellises of 65,536 states, and specs of a kind that another one has shown, are for
    the slow suite."""
    slow = spec.endswith("-l16") or (before not in [(), *((s,) for s in SMALL)] and spec not in one_of_each())
    return pytest.param(*before, spec, marks=[pytest.mark.slow] if slow else [])


def looks_across(spec: str) -> bool:
    """Whether a spec has passes or a budget: then forms differ from the model in more than formats."""
    loaded = load_spec(spec)
    return bool(loaded.passes) or loaded.budget is not None


FORMATS = [spec for spec in specs.names() if not looks_across(spec)]
ACROSS = [spec for spec in specs.names() if looks_across(spec)]
SPECS = [case_of(spec) for spec in FORMATS]
PAIRS = [
    case_of(spec, model) for model in CASES for spec in FORMATS if model in SMALL or not spec.startswith(LONG)
]


pytestmark = pytest.mark.usefixtures("one_thread")


def on(model: str, spec: str) -> dict[str, Any]:
    """A shipped spec, aimed at everything that a test model has to represent."""
    document = load_spec(spec).to_document()
    for rule in document["rules"]:
        rule["targets"], rule["ignore"] = TARGETS.get(model, rule["targets"]), []
    return document


def compiled(model: str, spec: str, dtype: torch.dtype = torch.float64) -> tuple[Case, nn.Module, Compiled]:
    case = CASES[model]
    original = case.model(dtype)
    return case, original, rhoc.compile(original, on(model, spec))


def represented(form: Compiled) -> dict[str, tuple[Representation, Tensor]]:
    """Each represented weight by its first path."""
    return {
        d.held.path: (d.assignment.weight, d.held.tensor.detach())
        for d in form.decisions
        if not d.assignment.weight.is_dense
    }


KEPT_WHERE_SMALL = ("dense", "low-rank-256", "low-rank-nf4", "blocks50")


def changes(form: Compiled) -> bool:
    """Whether the representation loses anything; not where a rank or a block covers a whole small weight."""
    close = [
        torch.allclose(representation.project(weight), weight, rtol=1e-12, atol=1e-12)
        for representation, weight in represented(form).values()
    ]
    inputs = [d.assignment.input.is_dense for d in form.decisions]
    return not (all(close) and all(inputs))


def started(form: Compiled, path: str, original: nn.Module) -> Tensor:
    """What is trained in the place of a tensor of the original at first."""
    value = original.state_dict()[path]
    latents = [d.assignment.latent for d in form.decisions if path in d.held.paths]
    return value if latents in ([], [None]) else latents[0].start(value)


@pytest.mark.parametrize(("model", "spec"), PAIRS)
def test_forms_agree(model: str, spec: str) -> None:
    case, original, form = compiled(model, spec)
    x = case.inputs(3)
    student, packed, reference = form.trainable().eval(), form.packed(), form.reference()
    with torch.no_grad():
        expected = reference(x)
        tolerance = 1e-12 * float(expected.abs().max())
        for other in (student, packed):
            torch.testing.assert_close(other(x), expected, rtol=0, atol=tolerance)
        if changes(form) or spec not in KEPT_WHERE_SMALL:
            assert not torch.allclose(expected, original.eval()(x), rtol=1e-6)
        else:
            torch.testing.assert_close(expected, original.eval()(x), rtol=0, atol=tolerance)
    learned = {path for decision in form.decisions for path in learned_names(decision)}
    latent = {key: value for key, value in student.state_dict().items() if key not in learned}
    assert list(latent) == list(reference.state_dict()) == list(original.state_dict())
    assert len(latent) + len(learned) == len(student.state_dict())
    assert all(torch.equal(value, started(form, key, original)) for key, value in latent.items())


@pytest.mark.parametrize("spec", ACROSS)
@pytest.mark.parametrize("model", ["llama", "encoder", "tied"])
def test_forms_agree_after_passes(model: str, spec: str) -> None:
    case = CASES[model]
    original, x = case.model(torch.float64), case.inputs(2)
    document = on(model, spec)
    if document.get("budget"):
        document["budget"]["candidates"] = ["int8", "int4-g128"]
        document["budget"]["limit"] = ["8 bits"]
    form = rhoc.compile(original, document, (x,))
    student, packed, reference = form.trainable().eval(), form.packed(), form.reference()
    with torch.no_grad():
        expected = reference(x)
        tolerance = 1e-12 * float(expected.abs().max())
        torch.testing.assert_close(packed(x), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(form.packed(student)(x), student(x), rtol=0, atol=tolerance)
        assert not torch.allclose(expected, original.eval()(x), rtol=1e-6)
    assert list(student.state_dict()) == list(original.state_dict())
    assert len(form.explain().passes) > len(form.spec.passes) or form.allocation is not None


@pytest.mark.parametrize("spec", SPECS)
def test_packed_holds_the_declared_bytes_and_decodes_to_the_projection(spec: str) -> None:
    small = spec.startswith(LONG) or spec not in one_of_each()
    _, original, form = compiled("mlp" if small else "llama", spec)
    packed = form.packed()
    stored = packed_weights(packed)
    assert stored.keys() == represented(form).keys()
    exact = True
    for path, (representation, weight) in represented(form).items():
        assert torch.equal(stored[path].decode(), representation.project(weight))
        layout = representation.layout(tuple(weight.shape), weight.dtype)
        saved = {
            k.removeprefix(f"{path}."): v for k, v in packed.state_dict().items() if k.startswith(f"{path}.")
        }
        assert saved.keys() == layout.keys()
        for name, field in layout.items():  # only what is entropy-coded may be of another length
            ends = -1 if field.variable else None
            assert saved[name].shape[:ends] == field.stored_shape[:ends]
            assert saved[name].dtype == (torch.uint8 if field.packed else field.dtype)
        if exact := not any(field.variable for field in layout.values()):
            assert sum(t.nbytes for t in saved.values()) == representation.nbytes(
                tuple(weight.shape), weight.dtype
            )
        assert stored[path].nbytes == sum(t.nbytes for t in saved.values())
        assert path not in packed.state_dict()
        assert not any(
            p.shape == weight.shape and p.data_ptr() == weight.data_ptr() for p in packed.parameters()
        )
    total = sum(tensor.nbytes for tensor in packed.state_dict().values())
    assert total == form.explain().total_bytes or not exact
    assert sum(tensor.nbytes for tensor in original.parameters()) == form.explain().dense_bytes


@pytest.mark.parametrize(
    ("spec", "sparsity"), [("sparse25", 0.25), ("sparse50", 0.5), ("sparse75", 0.75), ("2of4", 0.5)]
)
def test_masks_are_exact_in_every_form_after_training(spec: str, sparsity: float) -> None:
    case, _, form = compiled("llama", spec)
    student = form.trainable()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        student(case.inputs(3)).square().mean().backward()
        optimiser.step()
    packed, reference = form.packed(student), form.reference(student)
    plain = dict(reference.named_parameters())
    for path, stored in packed_weights(packed).items():
        for weight in (stored.decode(), plain[path]):
            assert int((weight == 0).sum()) == round(sparsity * weight.numel())
            if spec == "2of4":
                assert ((weight.unflatten(-1, (-1, 4)) != 0).sum(-1) == 2).all()
    with torch.no_grad():
        x = case.inputs(2)
        torch.testing.assert_close(student.eval()(x), reference(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(packed(x), reference(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", [of_a_kind(s) for s in FORMATS if s != "dense"])
def test_training_reaches_every_latent_weight_and_moves_the_loss(spec: str) -> None:
    case, original, form = compiled("llama", spec, torch.float32)
    student = form.trainable()
    rhoc.attach(student, torch.optim.SGD(student.parameters()), 10)
    tokens = case.inputs(4)

    def loss() -> Tensor:
        return F.cross_entropy(student(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    before = loss()
    before.backward()
    latent = dict(student.named_parameters())
    for path in represented(form):
        fields = [p for name, p in latent.items() if name.startswith(f"{path}_field_")]
        assert latent[path].requires_grad == (not fields)
        for parameter in fields or [latent[path]]:
            gradient = parameter.grad
            assert gradient is not None
            assert torch.isfinite(gradient).all()
            assert gradient.count_nonzero() > 0
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    assert float(loss().detach()) < float(before.detach())
    assert all(
        torch.equal(a, b)
        for a, b in zip(original.parameters(), CASES["llama"].model(torch.float32).parameters(), strict=True)
    )


@pytest.mark.parametrize("estimator", ["ste", "trust"])
@pytest.mark.parametrize("spec", ["int4", "int4-a4", "sparse50-int4"])
def test_the_train_form_gives_the_gradients_of_the_written_out_projection(spec: str, estimator: str) -> None:
    """The graph, which shares projections and stays rotated where it can, against one layer at a time."""
    case, document = CASES["mlp"], on("mlp", spec)
    document["rules"][0]["estimator"] = {"weights": estimator}
    if spec == "int4-a4":
        document["rules"][0]["estimator"]["input_activations"] = estimator
    original = case.model()
    form = rhoc.compile(original, document)
    x = case.inputs(5)
    student = form.trainable().eval()
    student(x).square().sum().backward()
    latent = [p.detach().clone().requires_grad_() for p in original.parameters()]
    (rule,) = form.spec.rules
    weight = Project(rule.weight_representation, rule.weight_estimators)
    entering = Project(rule.input_representation, rule.input_estimators)
    h = F.relu(F.linear(entering(x), weight(latent[0]), latent[1]))
    F.linear(entering(h), weight(latent[2])).square().sum().backward()
    for ours, written in zip(student.parameters(), latent, strict=True):
        torch.testing.assert_close(ours.grad, written.grad, rtol=1e-9, atol=1e-9)


def test_weights_and_inputs_share_one_rotation_and_one_projection() -> None:
    _, _, form = compiled("llama", "int4-a4")
    student = form.trainable()
    projections = [module for module in student.modules() if isinstance(module, Project)]
    assert all(module.keep_rotated for module in projections)
    weights, inputs = (
        7 * 2 + 1,
        4 * 2 + 1,
    )  # q, k, v share their input, as do gate and up; two layers, one head
    assert len(projections) == weights + inputs


def test_dropout_follows_train_and_eval() -> None:
    student = rhoc.compile(mlp(), "int8").trainable()
    x = torch.randn(4, 16)
    assert student.training
    assert not torch.equal(student(x), student(x))
    student.eval()
    assert torch.equal(student(x), student(x))
    for form in (rhoc.compile(mlp(), "int8").packed(), rhoc.compile(mlp(), "int8").reference()):
        assert not any(module.training for module in form.modules())
        assert not any(parameter.requires_grad for parameter in form.parameters())


def test_tied_weights_are_projected_once_packed_once_and_stay_tied() -> None:
    case, original, form = compiled("tied", "int4")
    student, packed = form.trainable(), form.packed()
    assert student.head.weight is student.embed.weight
    assert packed.head.weight is packed.embed.weight
    assert sum(isinstance(module, Project) for module in student.modules()) == 2
    student(case.inputs(3)).sum().backward()
    assert student.embed.weight.grad is not None
    assert set(packed.state_dict()) >= {"embed.weight.carry", "head.weight.carry"}
    moved = copy.deepcopy(student)
    assert moved.head.weight is moved.embed.weight
    assert original.head.weight is original.embed.weight


def test_a_parent_that_reads_a_weight_by_itself_sees_the_projection() -> None:
    case, _, form = compiled("tied_by_hand", "int4")
    student = form.trainable()
    (representation, weight) = represented(form)["embed.weight"]
    assert torch.equal(student.embed.weight, representation.project(weight))
    assert torch.equal(dict(student.named_parameters())["embed.weight"], weight)
    student(case.inputs(3)).sum().backward()
    packed = form.packed()
    assert isinstance(packed.embed.weight, Packed)
    assert torch.equal(copy.deepcopy(packed)(case.inputs(3)), packed(case.inputs(3)))
    assert torch.equal(copy.deepcopy(student)(case.inputs(3)), student(case.inputs(3)))


def test_other_uses_of_a_weight_see_it_decoded() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.layer.weight.norm() + x @ self.layer.weight

    torch.manual_seed(0)
    form = rhoc.compile(Penalised().double(), "int2-a2")
    x = floats(16)(3)
    expected = form.reference()(x)
    torch.testing.assert_close(form.trainable()(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(form.packed()(x), expected, rtol=1e-12, atol=1e-12)
    representation, weight = represented(form)["layer.weight"]
    plain = representation.project(weight)
    (rule,) = form.spec.rules
    entering = rule.input_representation.project(x)
    layer = F.linear(entering, plain, form.reference().layer.bias)
    torch.testing.assert_close(layer * plain.norm() + entering @ plain, expected, rtol=1e-12, atol=1e-12)


def test_inputs_alone_can_be_represented() -> None:
    chain = {"kind": "quantize", "num_bits": 3, "strategy": "token", "dynamic": True}
    rule = {"targets": ["Linear"], "input_activations": chain}
    model, x = CASES["mlp"].model(), CASES["mlp"].inputs(3)
    form = rhoc.compile(model, {"version": 1, "rules": rule})
    entering = form.spec.rules[0].input_representation
    model.eval()
    expected = model[3](entering.project(model[1](model[0](entering.project(x)))))
    for other in (form.trainable().eval(), form.packed(), form.reference()):
        torch.testing.assert_close(other(x), expected, rtol=1e-12, atol=1e-12)
    assert [p.shape for p in form.packed().parameters()] == [p.shape for p in model.parameters()]


def test_different_rotations_of_weight_and_input() -> None:
    quantize = {
        "kind": "quantize",
        "num_bits": 4,
        "strategy": "channel",
        "observer": "rms",
        "grid": "midrise",
    }
    rule = {
        "targets": ["Linear"],
        "weights": [{"kind": "hadamard", "block": 16}, quantize],
        "input_activations": [
            {"kind": "hadamard", "block": 8},
            quantize | {"strategy": "token", "dynamic": True},
        ],
    }
    case = CASES["mlp"]
    form = rhoc.compile(case.model(), {"version": 1, "rules": rule})
    x = case.inputs(3)
    expected = form.reference()(x)
    torch.testing.assert_close(form.trainable().eval()(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(form.packed()(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_compiles_and_agrees(dtype: torch.dtype) -> None:
    case, _, form = compiled("llama", "int4", dtype)
    x = case.inputs(2)
    with torch.no_grad():
        forms = [form.trainable().eval()(x), form.packed()(x), form.reference()(x)]
        assert {y.dtype for y in forms} == {dtype}
        exact = copy.deepcopy(form.reference()).double()(x)
    noise = max(float((forms[2].double() - exact).abs().max()), 1e-12)
    assert float((forms[0] - forms[2]).abs().max()) <= 2 * noise
    assert float((forms[1].double() - exact).abs().max()) <= 4 * noise


def test_packed_fields_keep_their_dtypes_when_the_model_changes_its_own() -> None:
    case, _, form = compiled("llama", "sparse50-int4", torch.float32)
    packed = form.packed()
    x = case.inputs(2)
    expected = packed(x)
    before = {name: tensor.dtype for name, tensor in packed.state_dict().items()}
    packed.to(torch.bfloat16)
    after = {name: tensor.dtype for name, tensor in packed.state_dict().items()}
    fields = [name for name in before if not name.endswith("weight")]
    assert all(before[name] == after[name] for name in fields)
    assert packed(x).dtype == torch.bfloat16
    assert float((packed(x).float() - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert next(iter(packed_weights(packed).values())).decode().dtype == torch.bfloat16


def test_a_packed_weight_stands_in_for_a_tensor() -> None:
    torch.manual_seed(0)
    chain = Representation((Hadamard(8), Quantize(4, strategy="channel")))
    weight, x, bias = torch.randn(6, 8), torch.randn(3, 8), torch.randn(6)
    packed = Packed.of(weight, chain)
    plain = chain.project(weight)
    assert (packed.shape, packed.dtype, packed.device) == (weight.shape, weight.dtype, weight.device)
    torch.testing.assert_close(F.linear(x, packed, bias), F.linear(x, plain, bias))
    torch.testing.assert_close(F.linear(x, weight=packed), F.linear(x, plain))
    tokens = torch.tensor([[0, 5], [2, 2]])
    torch.testing.assert_close(F.embedding(tokens, packed), plain[tokens])
    torch.testing.assert_close(torch.cat([packed, packed]), torch.cat([plain, plain]))
    torch.testing.assert_close(x @ torch.t(packed), x @ plain.T)
    assert "hadamard(8) >> quantize(int4" in repr(packed)


def test_trained_weights_of_another_model_are_refused() -> None:
    form = rhoc.compile(mlp(), "int4")
    state = form.trainable().state_dict()
    with pytest.raises(RequestError, match=r"the trained model misses 0\.bias; give the trainable form"):
        form.packed({name: tensor for name, tensor in state.items() if name != "0.bias"})
    with pytest.raises(RequestError, match=r"the trained model has the unexpected extra"):
        form.reference(state | {"extra": torch.zeros(1)})
    with pytest.raises(RequestError, match=r"3\.weight: shape \(8, 8\) trained, and \(8, 32\) here"):
        form.packed(state | {"3.weight": torch.zeros(8, 8)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[3].weight[0, 0] = value
    form = rhoc.compile(model, "int4")
    message = (
        r"3\.weight: 1 of 256 numbers are NaN or infinite, and cannot be encoded; train from finite weights"
    )
    for build in (form.packed, form.reference):
        with pytest.raises(RequestError, match=message):
            build()


def test_a_lookup_with_sparse_gradients_trains() -> None:
    model = nn.Sequential(nn.Embedding(8, 16, padding_idx=1, sparse=True), nn.Linear(16, 4))
    student = rhoc.compile(model, on("tied", "int4")).trainable()
    student(torch.tensor([[1, 2]])).square().sum().backward()
    gradient = dict(student.named_parameters())["0.weight"].grad
    assert gradient is not None
    assert not gradient.is_sparse
    assert gradient.abs().sum(-1).nonzero().flatten().tolist() == [2]


def test_dissolved_modules_refuse_what_would_go_unnoticed() -> None:
    form = rhoc.compile(CASES["llama"].model(), "int4")
    student = form.trainable()
    attention = student.layers[0].self_attn
    for method in ("register_forward_hook", "register_full_backward_pre_hook"):
        with pytest.raises(
            RequestError, match=r"layers\.0\.self_attn was dissolved .* hooks would never run; register"
        ):
            getattr(attention, method)(print)
    with pytest.raises(
        RequestError, match=r"q_proj was dissolved .*, and called alone its weights are not projected"
    ):
        attention.q_proj(torch.zeros(1, 16, dtype=torch.float64))
    with pytest.raises(RequestError, match="dissolved"):
        copy.deepcopy(student).layers(torch.zeros(1, 2, 16))
    student.lm_head(torch.zeros(1, 16, dtype=torch.float64))  # dense, so nothing is lost
    student.norm.register_forward_hook(lambda module, args, output: output * 0)  # called whole, so it runs
    assert not student(CASES["llama"].inputs(2)).any()
    x = torch.randn(3, 16, dtype=torch.float64)
    packed, reference = form.packed().layers[0].self_attn.q_proj, form.reference().layers[0].self_attn.q_proj
    torch.testing.assert_close(packed(x), reference(x), rtol=1e-12, atol=1e-12)


def test_a_model_without_numbers_can_only_be_explained() -> None:
    with torch.device("meta"):
        model = mlp()
    form = rhoc.compile(model, "int4")
    assert form.explain().total_bytes < form.explain().dense_bytes
    assert form.trainable()[0].weight.is_meta
    with pytest.raises(
        RequestError, match=r"0\.weight: on the meta device there are no numbers; build the model"
    ):
        form.packed()
