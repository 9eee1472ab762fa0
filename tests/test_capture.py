"""Capture refuses no module, traces nothing that a trace would get wrong, and leaves the model the user's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import rhoc
from rhoc.compiler.capture import capture
from rhoc.compiler.compile import Compiled
from rhoc.compiler.example import Example
from rhoc.compiler.explain import Row
from rhoc.compiler.symbolic import symbolic
from rhoc.passes.part import part_of
from rhoc.runtime.errors import RequestError

from .models import CASES, Branching, Case, floats

INT4 = {
    "version": 1,
    "rules": {"targets": ["Linear"], "weights": [{"kind": "quantize", "num_bits": 4, "strategy": "channel"}]},
}


def explained(compiled: Compiled) -> dict[str, Row]:
    """The rows of `explain` by path."""
    return {row.path: row for row in compiled.explain().parameters}


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.a(x) if mask is None else self.a(x * mask)


class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return self.a(x) * scale


class Mode(nn.Module):
    """A branch on the mode, as hand-written dropout has it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.a(x), 0.5, self.training)


class NoGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.a(x)
        return self.b(h)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x)
        return self.last


class Collects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.a(x)


class OwnTensor(nn.Module):
    """A random tensor made in forward, which a trace would draw once."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x + torch.rand(16, dtype=torch.float64))


class Asks(nn.Module):
    """isinstance of a stand-in is false, so a trace takes the wrong branch without noticing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if isinstance(x, Tensor) else self.b(x)


class Counting(nn.Module):
    """A buffer that is written in place on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.a(x)


class Listed(nn.Module):
    """Modules called through a plain list, in a forward that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.order = [self.b, self.a]
        self.named = {"first": self.a}

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        for module in self.order:
            x = module(x)
        return self.named["first"](x)


class Inner(nn.Module):
    """A whole graph around a part that cannot be traced and one that torch holds together."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.first(x).unsqueeze(0)).squeeze(0)


WEIRD: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "optional": (Optional, "the optional argument 'mask'"),
    "keyword": (KeywordOnly, "keyword-only argument 'scale'"),
    "mode": (Mode, "differs between train() and eval()"),
    "no_grad": (NoGradient, "switches gradients or autocast"),
    "remembers": (Remembers, "sets the attribute 'last'"),
    "collects": (Collects, "sets the attribute 'seen'"),
    "own_tensor": (OwnTensor, "a tensor of its own"),
    "branching": (Branching, "symbolic tracing failed"),
    "listed": (Listed, "symbolic tracing failed"),
}


@pytest.mark.parametrize("name", WEIRD)
def test_what_a_trace_would_get_wrong_is_captured_by_its_children(name: str) -> None:
    make, reason = WEIRD[name]
    model = make().double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    captured = capture(model)
    refused = {refusal.path: refusal.reason for refusal in captured.refusals}
    assert reason is not None
    assert reason in refused[""]
    assert all(fragment.path for fragment in captured.fragments)
    assert {f.path for f in captured.fragments} >= {
        n for n, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not getattr(captured.root, "seen", [])
    assert getattr(captured.root, "last", None) is None


@pytest.mark.parametrize("name", WEIRD)
def test_captured_by_parts_computes_what_the_model_computes_with_decoded_weights(name: str) -> None:
    torch.manual_seed(0)
    model = WEIRD[name][0]().double()
    x = floats(16)(3)
    arguments: dict[str, Any] = {"scale": 2.0} if name == "keyword" else {}
    compiled = rhoc.compile(model, INT4)
    decoded = copy.deepcopy(model)
    representation = compiled.decisions[0].assignment.weight
    with torch.no_grad():
        for module in decoded.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(representation.project(module.weight))
    for form in (compiled.trainable().eval(), compiled.packed(), compiled.reference()):
        torch.manual_seed(1)
        expected = decoded.eval()(x, **arguments)
        torch.manual_seed(1)
        torch.testing.assert_close(form(x, **arguments), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(decoded(x, **arguments), model.eval()(x, **arguments))


def test_optional_arguments_work_in_every_form() -> None:
    model, x = Optional().double(), floats(16)(3)
    compiled = rhoc.compile(model, INT4)
    for form in (compiled.trainable(), compiled.packed(), compiled.reference()):
        assert torch.allclose(form(x, mask=torch.zeros_like(x)), form(torch.zeros_like(x)))
        assert torch.allclose(form(x, torch.ones_like(x)), form(x=x))


def test_gradients_stay_off_where_the_model_turns_them_off() -> None:
    student = rhoc.compile(NoGradient().double(), INT4).trainable()
    student(floats(16)(3)).sum().backward()
    grads = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert grads["a.weight"] is None
    assert grads["b.weight"] is not None


def test_example_inputs_expose_a_trace_that_took_the_wrong_branch() -> None:
    model, x = Asks().double(), floats(16)(3)
    assert not capture(model).refusals
    (refusal,) = capture(model, Example((x,))).refusals
    assert refusal.reason == "its trace computes something else on the example inputs"
    compiled = rhoc.compile(model, INT4, (x,))
    torch.testing.assert_close(compiled.packed()(x), compiled.reference()(x))


def test_example_inputs_do_not_touch_the_model() -> None:
    model = Counting().double()
    compiled = rhoc.compile(model, INT4, (floats(16)(3),))
    student = compiled.trainable()
    assert int(model.calls) == int(student.calls) == 0
    student(floats(16)(3))
    assert int(student.calls) == 1
    assert int(model.calls) == 0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_dense_forms_are_the_model_to_the_bit(case: Case) -> None:
    model, x = case.model(), case.inputs(3)
    compiled = rhoc.compile(model, "dense", (x,))
    model.eval()
    for form in (compiled.trainable().eval(), compiled.packed(), compiled.reference()):
        with torch.no_grad():
            assert torch.equal(form(x), model(x))
        assert list(form.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", ["llama", "mlp", "tied", "functional"])
def test_a_whole_graph_is_the_model_to_the_bit(name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.inputs(3)
    graph = symbolic(model)
    assert isinstance(graph, fx.Graph)
    part = part_of(model, graph)
    for training in (True, False):
        model.train(training)
        part.train(training)
        for batch in (1, 2, 5):
            torch.manual_seed(2)
            expected = model(case.inputs(batch))
            torch.manual_seed(2)
            assert torch.equal(part(case.inputs(batch)), expected)
    assert torch.equal(copy.deepcopy(part)(x), part(x))


def test_the_trainable_form_is_still_the_users_model() -> None:
    case = CASES["llama"]
    model = case.model()
    model.note = {"by": "hand"}
    student = rhoc.compile(model, "int4").trainable()
    assert isinstance(student, type(model))
    assert type(student).__name__ == "Llama"
    assert student.note == {"by": "hand"}
    assert student.note is not model.note
    assert isinstance(student.layers[0].self_attn.q_proj, nn.Linear)
    assert student.training is model.training
    assert {id(p) for p in student.parameters()}.isdisjoint(id(p) for p in model.parameters())
    assert torch.equal(student(tokens=case.inputs(2)), student(case.inputs(2)))
    half = copy.deepcopy(student).to(torch.bfloat16)
    assert half(case.inputs(2)).dtype == torch.bfloat16
    assert student(case.inputs(2)).dtype == torch.float64
    with pytest.raises(TypeError, match="save its state_dict"):
        pickle.dumps(student)


def test_methods_and_frozen_parameters_survive() -> None:
    class Sampler(nn.Sequential):
        def sample(self, x: Tensor) -> Tensor:
            return self(x).argmax(-1)

    model = Sampler(nn.Linear(16, 4), nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    student = rhoc.compile(model, INT4).trainable()
    assert student.sample(torch.randn(3, 16)).shape == (3,)
    assert not student[0].weight.requires_grad
    assert student[1].weight.requires_grad


def test_hooks_inside_keep_running() -> None:
    """Hooks of modules that a trace would dissolve; the graph goes around them."""
    calls: list[str] = []
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU()))
    model[0].register_forward_hook(lambda m, i, o: calls.append("leaf"))
    model[1].register_forward_hook(lambda m, i, o: calls.append("inner"))
    model.register_forward_hook(lambda m, i, o: calls.append("root"))
    compiled = rhoc.compile(model, INT4)
    assert "0 has hooks" in compiled.captured.refusals[0].reason
    for form in (compiled.trainable(), compiled.packed()):
        calls.clear()
        form(torch.randn(3, 16))
        assert calls == ["leaf", "inner", "root"]


def test_a_whole_graph_goes_around_what_it_cannot_enter() -> None:
    torch.manual_seed(0)
    model = Inner().double()
    compiled = rhoc.compile(model, INT4)
    assert [f.path for f in compiled.captured.fragments][:3] == ["", "encoder.linear1", "encoder.linear2"]
    represented = {d.held.path for d in compiled.decisions if not d.assignment.is_dense}
    assert represented == {
        "first.weight",
        "encoder.linear1.weight",
        "encoder.linear2.weight",
        "encoder.self_attn.out_proj.weight",  # in_proj_weight is held by no Linear
    }
    x = floats(16)(5)
    forms = (compiled.trainable().eval(), compiled.packed(), compiled.reference())
    with torch.no_grad():
        a, b, c = (form(x) for form in forms)
    torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b, c, rtol=1e-12, atol=1e-12)


def test_a_module_at_two_paths_and_an_attribute_named_like_our_container() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rhoc = nn.Linear(16, 16)
            self.again = self.rhoc

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.rhoc(x))

    model = Twice()
    compiled = rhoc.compile(model, INT4)
    student = compiled.trainable()
    assert list(student.state_dict()) == list(model.state_dict())
    x = torch.randn(3, 16)
    torch.testing.assert_close(compiled.packed()(x), student(x))
    (weight, _) = compiled.explain().parameters
    assert weight.reason.startswith("tied to again.weight")


def test_graph_modules_parametrised_and_lora_like_modules() -> None:
    class Lora(nn.Linear):
        def __init__(self) -> None:
            super().__init__(16, 16)
            self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.up(self.down(x))

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    traced = fx.symbolic_trace(nn.Sequential(nn.Sequential(nn.Linear(16, 16)), nn.ReLU()))
    compiled = rhoc.compile(nn.Sequential(Lora(), traced, normed), INT4)
    rows = explained(compiled)
    assert {path for path, row in rows.items() if row.representation != "dense"} == {
        "0.weight",
        "0.down.weight",
        "0.up.weight",
        "1.0.0.weight",
        "2.weight",
    }
    latent = rows["2.parametrizations.weight.original1"]
    assert latent.reason == "2.weight is computed from it"
    assert rows["2.weight"].reason.startswith("computed from 2.parametrizations.weight.original0, ")
    x = torch.randn(3, 16)
    torch.testing.assert_close(compiled.packed()(x), compiled.trainable().eval()(x))


def test_a_lookup_that_writes_to_its_weight_is_left_alone() -> None:
    model = nn.Sequential(nn.Embedding(8, 16, max_norm=1.0), nn.Linear(16, 16))
    spec = copy.deepcopy(INT4)
    spec["rules"]["targets"] = ["Linear", "re:.*"]
    compiled = rhoc.compile(model, spec)
    assert compiled.explain().parameters[0].reason == (
        "used by a lookup that writes to it (max_norm), not as the weight of an operation"
    )


def test_a_weight_that_someone_else_reads_unseen_stays_dense() -> None:
    """Projecting it in the graph alone would make two models of one weight."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.other = nn.Linear(16, 16)
            self.own = self.layer.weight

        def forward(self, x: Tensor) -> Tensor:
            h = self.other(self.layer(x))
            return F.linear(h, self.own) if h.sum() < 1e9 else h

    compiled = rhoc.compile(Reader(), INT4)
    rows = explained(compiled)
    assert rows["own"].representation == "dense"
    assert rows["own"].reason == (
        "its module runs as Python and no graph shows what reads it; give example_inputs"
    )
    assert rows["other.weight"].representation != "dense"
    x = torch.randn(3, 16)
    seen = rhoc.compile(Reader(), INT4, (x,))
    assert {path for path, row in explained(seen).items() if row.representation != "dense"} == {
        "own",
        "other.weight",
    }
    torch.testing.assert_close(seen.trainable().eval()(x), seen.reference()(x))
    torch.testing.assert_close(seen.packed()(x), seen.reference()(x))


def test_a_model_that_cannot_be_copied_says_so() -> None:
    model = nn.Linear(16, 16)
    model.stream = (number for number in range(3))
    with pytest.raises(RequestError, match=r"Linear: this model cannot be copied: .*; take what"):
        rhoc.compile(model, INT4)


def test_what_is_no_model_to_begin_with() -> None:
    compiled = rhoc.compile(CASES["branching"].model(), INT4)
    with pytest.raises(RequestError, match="small was compiled before; compile the original model"):
        rhoc.compile(compiled.trainable(), INT4)
    with pytest.raises(RequestError, match="was compiled before"):
        rhoc.compile(compiled.packed(), INT4)
    with pytest.raises(RequestError, match=r"0\.weight: has no shape yet; run the model once before"):
        rhoc.compile(nn.Sequential(nn.LazyLinear(4)), INT4)


def test_example_inputs_must_fit_the_model() -> None:
    model = CASES["mlp"].model()
    with pytest.raises(RequestError, match=r"a Tensor, not a tuple of arguments or a mapping of .*; write"):
        rhoc.compile(model, INT4, floats(16)(3))
    with pytest.raises(
        RequestError, match=r"does not run on the example inputs: RuntimeError: mat1 and mat2"
    ):
        rhoc.compile(model, INT4, (floats(7)(3),))
