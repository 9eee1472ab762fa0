"""Weights that code reads as tensors, with represented inputs and outputs around their operations: torch
traces them whole, and computes what it computes untraced."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.runtime import program, slots
from rhoc.runtime.learned import LearnedInput
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights
from rhoc.runtime.representation import Representation
from rhoc.runtime.schedule import Schedule
from rhoc.runtime.slots import Slots
from rhoc.runtime.stages import Quantize

from .test_packed_intact import traced

# Weights that code reads again while it runs are projected once: a memory that is empty before and after.
remembered = pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")

SIZE = 32
INT8 = "quantize(int8, token, dynamic)"
A4 = Representation((Quantize(4, strategy="token", dynamic=True),))


def spec(**more: Any) -> dict[str, Any]:
    """Weights, inputs and outputs of everything represented."""
    rule = {"targets": "re:.*", "weights": "hadamard(16) >> quantize(int8, channel)"}
    return {"version": 1, "rules": rule | {"input_activations": INT8, "output_activations": INT8} | more}


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)


class Viewed(_Two):
    """Views of weights, by methods, attributes, functions and indices, and numbers made of one."""

    def forward(self, x: Tensor) -> Tensor:
        turned = x @ self.one.weight.t() + torch.matmul(x, self.two.weight.T)
        halves = F.linear(x, self.one.weight[:16]) + F.linear(x, self.two.weight.view(2, 16, SIZE)[1])
        swapped = x @ torch.transpose(self.one.weight, 0, 1)
        return turned + swapped * self.one.weight.abs().mean() + torch.cat((halves, halves), -1)


class ByHand(_Two):
    """Products of a weight itself, and arithmetic with it."""

    def forward(self, x: Tensor) -> Tensor:
        products = F.linear(x, self.one.weight, self.one.bias) + torch.einsum("ti,oi->to", x, self.two.weight)
        return products + x @ (self.one.weight * 2) + (1 / SIZE) * x * self.two.weight.sum()


class FromTheLeft(_Two):
    """A weight as the left factor; all matrices are square, so that shapes do not tell the sides."""

    def forward(self, x: Tensor) -> Tensor:
        return self.one.weight @ x + self.two.weight.t() @ x


class Attends(nn.Module):
    """torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(SIZE, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x[None], x[None], x[None], need_weights=False)[0]
        return result[0]


class Encodes(nn.Module):
    """torch's own layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(SIZE, 4, 64, dropout=0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x[None])[0]
        return result


MODELS = pytest.mark.parametrize("make", [Viewed, ByHand, FromTheLeft, Attends, Encodes])


def built(make: type[nn.Module], form: str, document: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """A form whose modules run as they are written, and an input."""
    torch.manual_seed(0)
    own, x = make(), torch.randn(SIZE, SIZE)
    model: nn.Module = getattr(rhoc.compile(own, document, (x,), whole=False), form)()
    torch._dynamo.reset()
    return model, x


@traced
@remembered
@MODELS
@pytest.mark.parametrize("form", ["packed", "reference"])
@torch.no_grad()
def test_one_graph_of_what_does_not_train(make: type[nn.Module], form: str) -> None:
    model, x = built(make, form, spec())
    expected = model(x)
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for strict in (False, True):
        exported = torch.export.export(model, (x,), strict=strict).module()
        torch.testing.assert_close(exported(x), expected, rtol=0, atol=1e-5)


@traced
@MODELS
def test_one_graph_of_what_trains_has_the_same_gradients(make: type[nn.Module]) -> None:
    model, x = built(make, "trainable", spec(estimator="trust"))

    def trained(run: Any) -> list[Tensor]:
        model.zero_grad()
        given = x.clone().requires_grad_()
        result = run(given)
        result.square().mean().backward()
        gradients = [given.grad, *(p.grad for p in model.parameters())]
        return [result.detach(), *(g.clone() for g in gradients if g is not None)]

    expected = trained(model)
    found = trained(torch.compile(model, backend="aot_eager", fullgraph=True))
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@traced
@pytest.mark.parametrize("form", ["packed", "trainable"])
@torch.no_grad()
def test_a_traced_product_from_the_left_is_one(form: str) -> None:
    """`weight @ x`, of which torch's tracer by itself makes `x @ weight` where `weight` is no tensor."""
    document = {"version": 1, "rules": {"targets": "re:.*", "weights": "quantize(int4, channel)"}}
    model, x = built(FromTheLeft, form, document)
    torch.manual_seed(0)
    own, project = FromTheLeft(), Representation((Quantize(4, strategy="channel"),)).project
    expected = project(own.one.weight) @ x + project(own.two.weight).t() @ x
    found = torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@traced
@torch.no_grad()
def test_a_packed_model_is_traced_where_it_was_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a graph calls by name is known after unpickling, whichever process that is in."""
    torch.manual_seed(0)
    model, x = Viewed(), torch.randn(SIZE, SIZE)
    rhoc.compile(model, spec()).save(tmp_path / "packed")
    made = load_packed(tmp_path / "packed", model)
    expected, content = made(x), pickle.dumps(made)
    monkeypatch.setattr(program, "_PROGRAMS", {})
    program.program_of.cache_clear()
    slots._unscheduled.cache_clear()
    again = pickle.loads(content)
    torch._dynamo.reset()
    torch.testing.assert_close(
        torch.compile(again, backend="eager", fullgraph=True)(x), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("estimator", ["noise", "stochastic"])
def test_a_packed_weight_knows_nothing_of_training(estimator: str) -> None:
    """What an estimator does to inputs in training is not done where gradients pass a packed weight."""
    document = spec(estimator={"input_activations": estimator})
    model, x = built(Viewed, "packed", document)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(model(x.clone().requires_grad_()), expected, rtol=0, atol=1e-5)
    assert all(not weight.slots.input_estimators for weight in packed_weights(model).values())


def test_numbers_that_change_are_those_of_copies_that_differ_elsewhere() -> None:
    given = Slots(output=A4, output_schedules=(Schedule("0.num_bits", 8),))
    (projection,) = given.held()
    other = replace(given, learned_input=LearnedInput(None, ()))  # type: ignore[arg-type]
    assert other.held()[0] is projection
    projection.values.fill_(6)
    x = torch.randn(3, 16)
    expected = Representation((replace(A4.stages[0], num_bits=6),)).project(x)  # type: ignore[type-var]
    for each in (given, other, copy.deepcopy(given)):
        assert torch.equal(each.projected_output(x, -1), expected)
