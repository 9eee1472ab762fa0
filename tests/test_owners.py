"""Whatever owns a weight is represented, and computes what plain torch computes from projected weights and
inputs: values and gradients, in graphs and in modules that run as the user wrote them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.example import Example
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights
from rhoc.runtime.projection import Project

from .owners import OWNERS, Owner, as_python, as_written, self_attention
from .projected import W4A8, a, normal, w, wk

PAIRS = [(name, of) for name in OWNERS for of in (as_written, as_python)]
IDS = [f"{name}-{of.__name__}" for name, of in PAIRS]
EVERY = pytest.mark.parametrize(("name", "of"), PAIRS, ids=IDS)


pytestmark = pytest.mark.usefixtures("one_thread")


def made(name: str, of: Any) -> tuple[Owner, nn.Module, Compiled]:
    owner = OWNERS[name]
    torch.manual_seed(0)
    model = owner.make(of).double().eval()
    example = Example(owner.arguments(), owner.keywords())
    return owner, model, rhoc.compile(model, W4A8, example)


def flat(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def run(owner: Owner, form: nn.Module) -> list[Tensor]:
    return flat(form(*owner.arguments(), **owner.keywords()))


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@EVERY
def test_values_and_gradients_are_those_of_plain_torch(name: str, of: Any) -> None:
    owner, model, compiled = made(name, of)
    represented = {d.held.path for d in compiled.decisions if not d.assignment.weight.is_dense}
    assert represented == set(owner.weights)
    student, latent = compiled.trainable(), copy.deepcopy(model)
    expected = flat(owner.expected(latent, *owner.arguments(), **owner.keywords()))
    found = run(owner, student)
    close(found, expected)
    assert not torch.allclose(found[0], run(owner, model)[0], rtol=1e-4)  # it does something at all
    for results in (found, expected):
        sum(r.mul(torch.arange(r.numel()).reshape(r.shape).cos()).sum() for r in results).backward()  # type: ignore[union-attr]
    wanted = {n: p.grad for n, p in latent.named_parameters()}
    grads = {n: p.grad for n, p in student.named_parameters()}
    assert grads.keys() == wanted.keys()
    for path, grad in wanted.items():
        assert grad is not None
        assert grads[path] is not None, path
        torch.testing.assert_close(grads[path], grad, rtol=1e-9, atol=1e-9)


@EVERY
def test_the_three_forms_agree_and_a_checkpoint_comes_back(name: str, of: Any, tmp_path: Path) -> None:
    owner, model, compiled = made(name, of)
    with torch.no_grad():
        expected = run(owner, compiled.reference())
        close(run(owner, compiled.trainable().eval()), expected)
        packed = compiled.packed()
        close(run(owner, packed), expected)
        close(run(owner, copy.deepcopy(packed)), expected)
        compiled.save(tmp_path / "packed")
        torch.manual_seed(1)
        loaded = load_packed(tmp_path / "packed", owner.make(of).double())
        assert [torch.equal(a, b) for a, b in zip(run(owner, loaded), run(owner, packed), strict=True)]
    stored = packed_weights(packed)
    assert stored.keys() == packed_weights(loaded).keys() == set(owner.weights)
    assert loaded.state_dict().keys() == packed.state_dict().keys()
    assert len({id(weight) for weight in stored.values()}) == len(owner.weights)
    total = sum(t.nbytes for t in {id(t): t for t in packed.state_dict(keep_vars=True).values()}.values())
    buffers = sum(b.nbytes for n, b in model.named_buffers() if n in model.state_dict())
    assert (
        total - (0 if "norm" in name or name == "orthogonal" else buffers) == compiled.explain().total_bytes
    )


@EVERY
def test_latent_weights_are_those_of_the_model(name: str, of: Any) -> None:
    owner, model, compiled = made(name, of)
    student, state = compiled.trainable(), model.state_dict()
    assert list(student.state_dict()) == list(state)
    assert all(torch.equal(value, state[path]) for path, value in student.state_dict().items())
    assert [n for n, _ in student.named_parameters()] == [n for n, _ in model.named_parameters()]
    torch.manual_seed(1)
    other = owner.make(of).double().eval()
    student.load_state_dict(other.state_dict())
    again = rhoc.compile(other, W4A8, Example(owner.arguments(), owner.keywords())).trainable()
    with torch.no_grad():
        close(run(owner, student.eval()), run(owner, again.eval()))
    rows = [row.path for row in compiled.explain().parameters]
    assert len(rows) == len(set(rows))
    assert set(rows) >= {n for n, _ in model.named_parameters()}
    assert set(rows) <= {n for n, _ in model.named_parameters()} | set(owner.weights)


NEED_EXAMPLES = {"looked_up_experts", "views"}
"""Whose own code must be seen running; as Python so must those with parameters of no module of torch's."""


@pytest.mark.parametrize("name", [name for name in OWNERS if name not in NEED_EXAMPLES])
def test_torch_modules_and_graphs_need_no_example(name: str) -> None:
    owner = OWNERS[name]
    compiled = rhoc.compile(owner.make(as_written), W4A8)
    assert set(packed_weights(compiled.packed())) == set(owner.weights)


def test_what_only_running_code_shows_says_so() -> None:
    model = OWNERS["looked_up_experts"].make(as_written)
    whole = nn.Sequential(nn.Linear(8, 8), model)
    rows = {row.path: row for row in rhoc.compile(whole, W4A8).explain().parameters}
    reason = "its module runs as Python and no graph shows what reads it; give example_inputs"
    assert [rows[f"1.{name}"].reason for name in ("up", "down")] == [reason, reason]


def old_weight_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, and in many models
        return torch.nn.utils.weight_norm(module, name)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_direction_that_the_old_weight_norm_keeps_is_represented(kind: str) -> None:
    torch.manual_seed(0)
    inner = nn.Linear(8, 6) if kind == "linear" else nn.Conv1d(8, 6, 3)
    x = normal(3, 8) if kind == "linear" else normal(3, 8, 5)
    model = nn.Sequential(old_weight_norm(inner), nn.ReLU()).double()
    compiled = rhoc.compile(model, W4A8)
    student, m = compiled.trainable(), copy.deepcopy(model.state_dict())
    v = (w if kind == "linear" else wk)(m["0.weight_v"])
    weight = m["0.weight_g"] * v / v.flatten(1).norm(dim=1).reshape(m["0.weight_g"].shape)
    function: Any = F.linear if kind == "linear" else F.conv1d
    expected = function(a(x, 1), weight, m["0.bias"]).relu()
    for form in (student, compiled.packed(), compiled.reference()):
        close([form(x)], [expected])
    assert list(student.state_dict()) == list(model.state_dict())
    student(x).sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    rows = {row.path: row for row in compiled.explain().parameters}
    assert rows["0.weight_v"].representation == "quantize(int4, twos, channel, absmax)"
    assert rows["0.weight_g"].representation == "dense"


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, old_weight_norm])
def test_one_computed_weight_among_others_of_a_recurrent_layer(norm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = norm(nn.LSTM(8, 6), "weight_hh_l0").double(), normal(3, 2, 8)
    compiled = rhoc.compile(model, W4A8)
    expected = compiled.reference()(x)[0]
    for form in (compiled.trainable(), compiled.packed()):
        close([form(x)[0]], [expected])
    found = {d.held.path for d in compiled.decisions if not d.assignment.weight.is_dense}
    computed = "weight_hh_l0" if norm is parametrizations.weight_norm else "weight_hh_l0_v"
    assert found == {"weight_ih_l0", computed}
    compiled.save(tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed", norm(nn.LSTM(8, 6), "weight_hh_l0").double())
    assert torch.equal(loaded(x)[0], compiled.packed()(x)[0])


def test_attention_whose_projection_is_computed() -> None:
    torch.manual_seed(0)
    model = parametrizations.weight_norm(nn.MultiheadAttention(16, 2, batch_first=True), "in_proj_weight")
    model, x = model.double(), normal(2, 5, 16)
    compiled = rhoc.compile(model, W4A8)
    expected, _ = self_attention(model, x)
    for form in (compiled.trainable(), compiled.packed(), compiled.reference()):
        close([form(x, x, x)[0]], [expected])


def test_computed_weights_inside_a_model_train_and_pack_as_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def make() -> nn.Module:
        inner = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(12, 8)))
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), inner).double()

    model, x = make(), normal(5, 8)
    before = copy.deepcopy(model.state_dict())
    compiled = rhoc.compile(model, W4A8)  # in train(), where a spectral norm iterates at every use
    compiled.packed()
    assert all(torch.equal(value, before[path]) for path, value in model.state_dict().items())
    student = compiled.trainable()
    optimiser = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        student(x).square().sum().backward()
        optimiser.step()
    changed = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, _ in model.named_parameters()}
    packed, reference = compiled.packed(student), compiled.reference(student)
    close([packed(x)], [student.eval()(x)])
    close([packed(x)], [reference(x)])
    compiled.save(tmp_path / "packed", student)
    fresh = make()
    state = copy.deepcopy(fresh.state_dict())
    assert torch.equal(load_packed(tmp_path / "packed", fresh)(x), packed(x))
    assert all(torch.equal(value, state[path]) for path, value in fresh.state_dict().items())
    reasons = {row.path: row.reason for row in compiled.explain().parameters}
    latent = [path for path in reasons if "parametrizations" in path]
    assert latent
    assert {reasons[path] for path in latent} == {"2.weight is computed from it"}


@pytest.mark.parametrize("of", [as_written, as_python])
@pytest.mark.parametrize("estimator", ["ste", "trust"])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_lookups_with_sparse_gradients_train(kind: Any, estimator: str, of: Any) -> None:
    spec = copy.deepcopy(W4A8)
    spec["rules"]["estimator"] = {"weights": estimator}
    spec["rules"]["weights"] = [{"kind": "hadamard", "block": 16}, spec["rules"]["weights"]]
    student = rhoc.compile(of(kind)(8, 16, sparse=True), spec).trainable()
    student(torch.tensor([[1, 2]])).square().sum().backward()
    (parameter,) = student.parameters()
    assert parameter.grad is not None
    assert not parameter.grad.is_sparse
    assert parameter.grad.abs().sum(-1).nonzero().flatten().tolist() == [1, 2]


def test_experts_that_are_looked_up_one_by_one_share_one_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, _, compiled = made("looked_up_experts", as_written)
    student, calls, project = compiled.trainable(), [], Project.forward

    def counting(self: Project, x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return project(self, x)

    monkeypatch.setattr(Project, "forward", counting)
    run(owner, student)
    assert sorted(calls) == [(3, 8, 12), (3, 12, 8)]
