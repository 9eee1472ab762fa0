"""The whole model as one graph of ATen operations: values, names, what is shared, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rhoc.compiler.example import Example, example_of, own_example
from rhoc.compiler.graphs import calls_of, part_graphs
from rhoc.compiler.whole import tensors_in, whole_graph
from rhoc.passes.listing import listing
from rhoc.passes.sites import sites
from rhoc.runtime.errors import RequestError

from .models import CASES, Branching, Case


def graph_of(model: nn.Module, *args: object, **kwargs: object) -> fx.GraphModule:
    gm = whole_graph(model, Example(args, kwargs))
    assert isinstance(gm, fx.GraphModule), gm
    return gm


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in CASES if name != "branching"])
def test_it_gives_what_the_model_gives_to_the_bit(name: str) -> None:
    case: Case = CASES[name]
    model, x = case.model(), case.inputs(2)
    gm = graph_of(model, x)
    with torch.no_grad():
        expected = model.eval()(x)
    if name == "encoder":  # torch has a kernel of its own for its encoder, which export does not see
        torch.testing.assert_close(gm(x)[0], expected, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(gm(x)[0], expected)


class Layer(nn.Module):
    """One linear layer before what is to be looked at."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.then = nn.Linear(8, 8), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.linear(x))


def into_a_column(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 5.0
    return x + y


def into_an_empty_tensor(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:3] = x[:, 1:3]
    return y


def through_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    y.view(-1).mul_(2)
    return x * y


def after_detach(x: Tensor) -> Tensor:
    y = x.detach().clone()
    y.mul_(0)
    return x + y


def accumulated(x: Tensor) -> Tensor:
    y = x.contiguous().clone()
    y += x
    F.relu_(y)
    return x - y


WRITES = [into_a_column, into_an_empty_tensor, through_a_view, after_detach, accumulated]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_is_written_in_place_is_not_lost(write: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Layer(write).double(), normal(4, 8)
    gm = graph_of(model, x)
    with torch.no_grad():
        assert torch.equal(gm(x)[0], model(x))
        assert not torch.equal(model(x), x)


def test_a_graph_with_writes_has_none() -> None:
    torch.manual_seed(0)
    gm = graph_of(Layer(into_an_empty_tensor).double(), normal(4, 8))
    assert listing(gm) == (
        "%args_0 = input                                           f64[4,8]\n"
        "%1 = linear.default(%args_0, linear.weight, linear.bias)  f64[4,8]\n"
        "%2 = zeros_like.default(%1, pin_memory=False)             f64[4,8]\n"
        "%3 = slice.Tensor(%1, 1, 1, 3)                            f64[4,2]\n"
        "%4 = slice.Tensor(%2, 1, 1, 3)                            f64[4,2]\n"
        "%5 = copy.default(%4, %3)                                 f64[4,2]\n"
        "%6 = slice_scatter.default(%2, %5, 1, 1, 3)               f64[4,8]\n"
        "return (%6,)"
    )


class Counting(nn.Module):
    """A buffer that counts calls, dropout, and a block without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        with torch.no_grad():
            y = self.linear(x)
        return self.dropout(self.linear(x) + y)


def test_the_model_is_left_as_it_was() -> None:
    model, x = Counting().train(), normal(4, 8).float()
    gm = graph_of(model, x)
    gm(x)
    assert model.training
    assert model.dropout.training
    assert int(model.calls) == 0
    assert "dropout" not in listing(gm)


def test_parameters_and_modules_are_the_models_own() -> None:
    case = CASES["tied"]
    model, tokens = case.model(), case.inputs(2)
    gm = graph_of(model, tokens)
    read = [site.path for site in sites(gm)]
    assert read == [
        "embed.weight",
        "hidden.weight",
        "hidden.weight",
        "embed.weight",
    ]  # tied: by its first path
    assert gm.get_submodule("hidden") is model.hidden
    with torch.no_grad():
        model.embed.weight.mul_(2)
        assert torch.equal(gm(tokens)[0], model(tokens))


@dataclass
class Output:
    """An output class that is no tuple."""

    logits: Tensor


class Arguments(nn.Module):
    """Optional and keyword arguments, a mapping as input and as output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        more: dict[str, Tensor] | None = None,
        scale: float = 1.0,
    ) -> dict[str, object]:
        y = self.linear(x) * scale
        if mask is not None:
            y = y * mask
        if more is not None:
            y = y + more["a"] - more["b"]
        return {"y": y, "count": 3, "all": (y + 1, [y + 2, None])}


def test_arguments_by_keyword_and_what_is_in_the_output() -> None:
    model, (x, a, b, mask) = Arguments().double(), normal(4, 3, 8)
    kwargs = {"more": {"a": a, "b": b}, "mask": mask, "scale": 0.5}
    example = Example((x,), kwargs)
    gm = whole_graph(model, example)
    assert isinstance(gm, fx.GraphModule), gm
    with torch.no_grad():
        found, expected = gm(*example.tensors), tensors_in(model(x, **kwargs))
    assert len(found) == len(expected) == 3
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert tensors_in(Output(x)) == []


def test_why_there_is_none() -> None:
    found = whole_graph(Branching().double(), Example((normal(4, 16),)))
    assert isinstance(found, str)
    assert found.startswith("torch.export failed: ")
    assert "\n" not in found


def test_parts_of_what_has_no_graph() -> None:
    model, x = Branching().double(), normal(4, 16)
    parts, refusals = part_graphs(model, Example((x,)))
    called = "small" if float(x.abs().mean()) < 1 else "large"
    assert [part.path for part in parts] == sorted({called, "large"}, key=["small", "large"].index)
    assert [each.path for each in refusals] == [""]
    for part in parts:
        (given,) = part.example.tensors
        assert torch.equal(given, x)


class Accumulates(nn.Module):
    """A loop that adds to its input in place, ended by the data, with a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = x.clone()
        h += self.first(h)
        if float(h.detach().sum()) < 1e9:
            h += self.second(h)
        return h


def test_parts_see_what_they_were_called_with_before_it_was_written_to() -> None:
    torch.manual_seed(0)
    model, x = Accumulates().double(), normal(4, 8)
    parts, _ = part_graphs(model, Example((x,)))
    assert [part.path for part in parts] == ["first", "second"]
    with torch.no_grad():
        middle = x + model.first(x)
    assert torch.equal(parts[0].example.tensors[0], x)
    assert torch.equal(parts[1].example.tensors[0], middle)
    (call,) = calls_of(model, "second", [Example((x,))])
    assert torch.equal(call.tensors[0], middle)


def test_batches_on_which_a_part_is_not_called_are_left_out() -> None:
    model = Branching().double()
    small, large = Example((normal(4, 16) / 10,)), Example((normal(4, 16) * 10,))
    (call,) = calls_of(model, "small", [small, large])
    assert torch.equal(call.args[0], small.args[0])
    assert len(calls_of(model, "large", [small, large])) == len(calls_of(model, "", [small, large])) == 2


class Traced(nn.Module):
    """Gives something else when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (2 if torch.compiler.is_compiling() else 1)


def test_a_graph_that_gives_something_else_is_none() -> None:
    parts, refusals = part_graphs(Traced(), Example((torch.ones(2, 8),)))
    assert [part.path for part in parts] == ["linear"]
    assert str(refusals[0]) == "the model: its graph gives other values than the module"


def test_examples_as_users_give_them() -> None:
    x = torch.ones(2, 8)
    assert example_of((x,)) == Example((x,))
    assert example_of({"x": x}) == Example((), {"x": x})
    assert example_of(Example((x,), {"y": x})).tensors == [x, x]
    with pytest.raises(RequestError, match=r"example_inputs is a Tensor, not a tuple"):
        example_of(x)


def test_examples_of_the_model_itself() -> None:
    model = nn.Linear(8, 8)
    assert own_example(model) is None
    model.example_inputs = (torch.ones(2, 8),)  # type: ignore[assignment]
    found = own_example(model)
    assert found is not None
    assert found.args[0].shape == (2, 8)
    model.example_inputs = (torch.ones(2, 9),)  # type: ignore[assignment]
    assert own_example(model) is None
