"""What comes out of compiling is still the user's model: called, moved, copied, hooked, trained and wrapped as it
was before."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rhoc
from rhoc.runtime.errors import RequestError
from rhoc.runtime.projection import Project

from .models import CASES
from .owners import OWNERS, as_python, as_written
from .projected import W4A8, normal

W4 = {
    "version": 1,
    "rules": {"targets": "re:.*", "weights": {"kind": "quantize", "num_bits": 4, "strategy": "channel"}},
}


pytestmark = pytest.mark.usefixtures("one_thread")


class Asked(nn.Module):
    """Every kind of argument, and a nested one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(
        self,
        x: Tensor,
        *more: Tensor,
        scale: float = 1.0,
        state: dict[str, Tensor] | None = None,
        **rest: Tensor,
    ) -> dict[str, Any]:
        """What the user says of it."""
        h = self.a(x) * scale
        for other in more:
            h = h + self.b(other)
        if state is not None:
            h = h + state["h"]
        return {"h": h, "others": [*(self.b(value) for value in rest.values())]}


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "one": ((normal(3, 8),), {}),
    "variadic": ((normal(3, 8), normal(3, 8) + 1, normal(3, 8) - 1), {}),
    "keyword": ((), {"x": normal(3, 8), "scale": 0.5}),
    "nested": ((normal(5, 8),), {"state": {"h": normal(5, 8)}, "extra": normal(2, 8)}),
}


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def same(found: Any, expected: Any, tolerance: float = 1e-11) -> None:
    one, other = leaves(found), leaves(expected)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("call", CALLS)
def test_every_kind_of_argument_reaches_the_model(call: str) -> None:
    torch.manual_seed(0)
    model, (args, kwargs) = Asked().double(), CALLS[call]
    by_hand = copy.deepcopy(model)
    compiled = rhoc.compile(model, W4)
    weight = compiled.decisions[0].assignment.weight
    with torch.no_grad():
        for layer in (by_hand.a, by_hand.b):
            layer.weight.copy_(weight.project(layer.weight))
    for form in (compiled.trainable(), compiled.packed(), compiled.reference()):
        found = form(*args, **kwargs)
        assert list(found) == ["h", "others"]
        same(found, by_hand(*args, **kwargs))
    student = compiled.trainable()
    assert type(student).forward.__doc__ is not None
    assert isinstance(student, Asked)
    assert list(student.state_dict()) == list(model.state_dict())


def test_a_graph_has_the_signature_that_the_model_had() -> None:
    """With names and positions, and refuses what the model refuses."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) - y

    model, x, y = Two().double(), normal(3, 8), normal(8)
    for form in (rhoc.compile(model, W4).trainable(), rhoc.compile(model, W4).packed()):
        same(form(x, y), form(y=y, x=x))
        assert list(inspect.signature(form.forward).parameters) == ["x", "y"]
        with pytest.raises(TypeError):
            form(x)
        with pytest.raises(TypeError):
            form(x, y, x)


@pytest.mark.parametrize("name", CASES)
def test_other_batches_and_lengths_than_the_example(name: str) -> None:
    case = CASES[name]
    compiled = rhoc.compile(case.model(), W4 if name != "encoder" else W4A8, (case.inputs(3),))
    forms = [compiled.trainable().eval(), compiled.packed(), compiled.reference()]
    for batch in (1, 2, 7):
        x = case.inputs(batch)
        inputs = [x, x[:, :3]] if x.dim() > 2 or not x.is_floating_point() else [x]
        for each in inputs:
            with torch.no_grad():
                a, b, c = (form(each) for form in forms)
            same(a, c)
            same(b, c)
            assert a.shape[0] == batch


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_the_dense_spec_keeps_the_bits_in_both_modes(name: str, training: bool) -> None:
    case = CASES[name]
    model = case.model().train(training)
    student = rhoc.compile(model, "dense", (case.inputs(2),)).trainable()
    assert student.training is training
    for batch in (2, 5):
        results = []
        for each in (model, student):
            torch.manual_seed(3)
            y = each(case.inputs(batch))
            each.zero_grad()
            y.square().sum().backward()
            results.append([y, *(p.grad for p in each.parameters() if p.grad is not None)])
        assert len(results[0]) > 1
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("of", [as_written, as_python])
def test_the_dense_spec_keeps_the_bits_of_every_owner(name: str, of: Any) -> None:
    owner = OWNERS[name]
    torch.manual_seed(0)
    model = owner.make(of).double().eval()
    compiled = rhoc.compile(model, "dense")
    frozen = copy.deepcopy(model).requires_grad_(
        False
    )  # torch multiplies in another order where nothing is trained
    pairs = ((compiled.trainable(), model), (compiled.packed(), frozen), (compiled.reference(), frozen))
    for form, original in pairs:
        with torch.no_grad():
            found, expected = (leaves(m(*owner.arguments(), **owner.keywords())) for m in (form, original))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert list(form.state_dict()) == list(model.state_dict())


class Block(nn.Module):
    """A norm that counts batches, dropout, and a branch on the mode that no trace follows."""

    def __init__(self, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.conv, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.drop, self.out = nn.Dropout(0.3), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor, noise: bool = False) -> Tensor:
        h = self.drop(F.gelu(self.norm(self.conv(x))))
        if noise and self.training:
            h = h + torch.randn_like(h)
        return x + self.out(h) if self.residual else self.out(h)


def blocks() -> nn.Module:
    return nn.Sequential(Block(), nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)), Block(False))


def by_hand(model: nn.Module) -> nn.Module:
    """A copy whose convolutions have projected weights."""
    copied = copy.deepcopy(model)
    weight = rhoc.load_spec(W4).rules[0].weight_representation
    with torch.no_grad():
        for module in copied.modules():
            if isinstance(module, nn.Conv1d):
                module.weight.copy_(weight.project(module.weight.flatten(1)).reshape(module.weight.shape))
    return copied


def test_dropout_and_running_statistics_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    model, x = blocks().double(), normal(6, 4, 10)
    student, other = rhoc.compile(model, W4, (x,)).trainable(), by_hand(model)
    for mode in (True, True, False):
        student.train(mode)
        other.train(mode)
        results = []
        for each in (student, other):
            torch.manual_seed(5)
            results.append(each(x))
        same(*results)
    found, expected = dict(student.named_buffers()), dict(other.named_buffers())
    assert found.keys() == expected.keys() == dict(model.named_buffers()).keys()
    assert int(found["0.norm.num_batches_tracked"]) == 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    assert int(model[0].norm.num_batches_tracked) == 0
    packed = rhoc.compile(model, W4, (x,)).packed(student)
    same(packed(x), student.eval()(x))


def test_hooks_from_before_run_in_every_form() -> None:
    calls: list[str] = []
    model = blocks().double()
    for name in ("", "0", "0.conv", "1.0", "2.norm"):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda m, args, name=name: calls.append(f"before {name}"))
        module.register_forward_hook(lambda m, args, y, name=name: calls.append(f"after {name}"))
    x = normal(2, 4, 6)
    model(x)
    expected = list(calls)
    compiled = rhoc.compile(model, W4)
    for form in (compiled.trainable(), compiled.packed(), compiled.reference()):
        calls.clear()
        form(x)
        assert calls == expected


def test_hooks_that_change_what_passes_through_do_so_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).double()
    model[0].register_forward_hook(lambda m, args, y: 2 * y)
    model.register_full_backward_hook(lambda m, gi, go: None)
    compiled, x = rhoc.compile(model, W4), normal(3, 8)
    found = compiled.trainable()(x)
    same(found, compiled.reference()(x))
    model[0]._forward_hooks.clear()
    assert not torch.allclose(found, rhoc.compile(model, W4).reference()(x))


@pytest.mark.parametrize("name", ["mlp", "branching", "llama", "tied"])
def test_without_whole_every_module_takes_hooks_and_calls_afterwards(name: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.inputs(3)
    whole, parts = (rhoc.compile(model, W4, whole=w).trainable().eval() for w in (True, False))
    same(parts(x), whole(x))
    calls: list[str] = []
    expected: list[str] = []
    for each, record in ((parts, calls), (model, expected)):
        for path, module in each.named_modules():
            if not any(isinstance(m, Project) for m in module.modules()) or path == "":
                module.register_forward_hook(lambda m, a, y, r=record, p=path: r.append(p))
    model.eval()(x)
    parts(x)
    assert [path for path in expected if path in set(calls)] == calls
    linears = [(p, m) for p, m in parts.named_modules() if type(m).__name__ == "Linear"]
    assert linears
    path, linear = linears[0]
    entering = normal(2, linear.in_features)
    weight = rhoc.load_spec(W4).rules[0].weight_representation.project(model.get_submodule(path).weight)
    same(linear(entering), F.linear(entering, weight, linear.bias))
    linear.register_forward_hook(lambda m, a, y: torch.zeros_like(y))
    assert not torch.allclose(parts(x), whole(x))


FAMILIES = ["mlp", "branching", "functional", "tied_by_hand", "encoder"]


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_and_dtypes(name: str) -> None:
    case = CASES[name]
    model = case.model()
    compiled = rhoc.compile(model, W4A8, (case.inputs(2),))
    x = case.inputs(3)
    for form in (compiled.trainable().eval(), compiled.packed(), compiled.reference()):
        expected = form(x).detach()
        copied = copy.deepcopy(form)
        assert isinstance(form, type(model))
        assert torch.equal(copied(x), expected)
        assert {id(p) for p in copied.parameters()}.isdisjoint(id(p) for p in form.parameters())
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        assert torch.equal(form(x), expected)
        single = copy.deepcopy(form).to(torch.float32)
        y = single(x.float() if x.is_floating_point() else x)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    student = compiled.trainable()
    assert all(p.dtype == torch.bfloat16 for p in student.to(torch.bfloat16).parameters())


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("backend", "name"),
    [("eager", "mlp"), ("eager", "encoder"), ("aot_eager", "functional"), ("aot_eager", "branching")],
)
def test_torch_compile_takes_the_train_form(name: str, backend: str) -> None:
    torch._dynamo.reset()
    case = CASES[name]
    student = rhoc.compile(case.model(), W4, (case.inputs(2),)).trainable().eval()
    x = case.inputs(3)
    expected = student(x)
    expected.square().sum().backward()
    grads = {n: p.grad for n, p in student.named_parameters()}
    student.zero_grad()
    made = torch.compile(student, backend=backend)(x)
    same(made, expected)
    made.square().sum().backward()
    assert any(grad is not None for grad in grads.values())
    for path, parameter in student.named_parameters():
        if grads[path] is None:
            assert parameter.grad is None
        else:
            same(parameter.grad, grads[path], 1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_autocast(name: str) -> None:
    case = CASES[name]
    model, x = case.model(torch.float32), case.inputs(3)
    x = x.float() if x.is_floating_point() else x
    compiled = rhoc.compile(model, W4A8, (x,))
    for form in (compiled.trainable().eval(), compiled.packed(), compiled.reference()):
        expected = form(x).detach()
        with torch.autocast("cpu", torch.bfloat16):
            y, wanted = form(x), model(x).dtype
        assert y.dtype == wanted
        torch.testing.assert_close(y.float(), expected, rtol=0.2, atol=0.2 * float(expected.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        student = compiled.trainable()
        loss = student(x).float().square().sum()
    loss.backward()
    grads = {n: p.grad for n, p in student.named_parameters() if n != "unused"}
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads.values()), grads.keys()


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass, as large models have them."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = x + block(x)
            else:
                again: Any = checkpoint(block, x, use_reentrant=self.reentrant)
                x = x + again
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    plain = Checkpointed(None).double()
    model = Checkpointed(reentrant).double()
    model.load_state_dict(plain.state_dict())
    grads = []
    for each in (plain, model):
        student = rhoc.compile(each, W4A8).trainable()
        x = normal(3, 8).requires_grad_()
        student(x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in student.parameters())])
    same(grads[1], grads[0])
    assert len(grads[0]) == 9


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_around_a_whole_train_form(name: str, reentrant: bool) -> None:
    case = CASES[name]
    student = rhoc.compile(case.model(), W4, (case.inputs(2),)).trainable().eval()
    x = case.inputs(3)
    x = x.requires_grad_() if x.is_floating_point() else x
    if reentrant and not x.requires_grad:
        return  # it needs an input with a gradient
    student(x).square().sum().backward()
    grads = {n: p.grad for n, p in student.named_parameters()}
    student.zero_grad()
    made: Any = checkpoint(student, x, use_reentrant=reentrant)
    made.square().sum().backward()
    for path, parameter in student.named_parameters():
        assert (parameter.grad is None) == (grads[path] is None)
        if parameter.grad is not None:
            same(parameter.grad, grads[path])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["mlp", "branching", "tied_by_hand"])
def test_distributed_data_parallel(name: str, one_process: None) -> None:
    case = CASES[name]
    student = rhoc.compile(case.model(), W4, (case.inputs(2),)).trainable().eval()
    x = case.inputs(3)
    student(x).square().sum().backward()
    grads = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    parallel = nn.parallel.DistributedDataParallel(student)
    parallel(x).square().sum().backward()
    for path, parameter in student.named_parameters():
        same(parameter.grad, grads[path])
    assert [n.removeprefix("module.") for n in parallel.state_dict()] == list(student.state_dict())


@pytest.mark.parametrize("name", [*CASES])
def test_checkpoints_go_from_dense_to_train_form_and_back(name: str) -> None:
    case = CASES[name]
    model, other = case.model(), case.model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    compiled = rhoc.compile(model, W4, (case.inputs(2),))
    student = compiled.trainable().eval()
    student.load_state_dict(other.state_dict(), strict=True)
    same(student(case.inputs(3)), compiled.packed(other)(case.inputs(3)))
    dense = case.make().double()
    dense.load_state_dict(student.state_dict(), strict=True)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in dense.state_dict().items())
    assert student.state_dict().keys() == compiled.reference().state_dict().keys()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", [*CASES])
def test_optimisers_see_every_latent_parameter(name: str, make: Callable[..., Any]) -> None:
    case = CASES[name]
    model = case.model()
    student = rhoc.compile(model, W4A8, (case.inputs(2),)).trainable()
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    assert before.keys() == dict(model.named_parameters()).keys()
    optimiser = make(student.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        optimiser.zero_grad()
        torch.manual_seed(0)
        loss = student(case.inputs(4)).square().sum()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[1] != losses[0]
    moved = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert moved == before.keys() - {"unused"}
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", ["mlp", "branching", "functional", "encoder"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_second_compile_is_refused(name: str, whole: bool) -> None:
    case = CASES[name]
    compiled = rhoc.compile(case.model(), W4, (case.inputs(2),), whole=whole)
    for form in (compiled.trainable(), compiled.packed()):
        with pytest.raises(RequestError, match="was compiled before; compile the original model"):
            rhoc.compile(nn.Sequential(form), W4)
