"""Which weights can have their input channels scaled for free, and that any factors leave values as they were."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rhoc.compiler.example import Example
from rhoc.compiler.whole import whole_graph
from rhoc.passes.rescale import Ledger
from rhoc.passes.scalable import scalable

from .scaled_models import CASES, graph_of, model_of, same, sequence


def texts(gm: fx.GraphModule) -> list[str]:
    """Groups and what is in none, as text."""
    groups, left = scalable(gm)
    return [f"{group} ({int(group.free.sum())} of {group.producer.count})" for group in groups] + [
        str(each) for each in left
    ]


@pytest.mark.parametrize("name", CASES)
def test_groups_are_as_written_down(name: str) -> None:
    model, x = model_of(name)
    assert texts(graph_of(model, x)) == list(CASES[name].expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_any_factors_leave_graph_and_model_as_they_were(name: str, dtype: torch.dtype) -> None:
    model, x = model_of(name, dtype)
    gm = graph_of(model, x)
    with torch.no_grad():
        before = model(x)
        keys = {key: (t.shape, t.dtype) for key, t in model.state_dict().items()}
        ledger = Ledger(gm)
        for group in scalable(gm)[0]:
            factors = torch.exp(2 * torch.randn(group.producer.count, dtype=torch.float64))
            changed = [p.clone() for p in model.parameters()]
            ledger.scale(group, torch.where(group.free, factors, 1.0))
            ledger.write()
            assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), changed, strict=True))
        same(before, model(x))
        same(before, gm(x)[0])
    assert keys == {key: (t.shape, t.dtype) for key, t in model.state_dict().items()}


def test_factors_are_right_in_train_too() -> None:
    model, x = model_of("convolutions")
    model[11] = nn.Identity()
    gm = graph_of(model, x)
    model.train()
    with torch.no_grad():
        before = model(x)
        for group in scalable(gm)[0]:
            ledger = Ledger(gm)
            ledger.scale(group, torch.exp(torch.randn(group.producer.count, dtype=torch.float64)))
            ledger.write()
        same(before, model(x))


STEPS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 8),
    "norm": lambda: nn.LayerNorm(8),
    "rms": lambda: nn.RMSNorm(8),
    "relu": nn.ReLU,
    "leaky": nn.LeakyReLU,
    "silu": nn.SiLU,
}


class Random(nn.Module):
    """Steps that read any of the tensors made so far; sums, products and joins of two of them; two outputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = np.random.default_rng(seed)
        self.plan: list[tuple[str, int, int]] = []
        self.steps = nn.ModuleDict()
        kinds = [*STEPS, "linear", "linear", "linear", "relu", "mul", "add", "cat", "swap"]
        for number in range(1, 11):
            kind = str(draw.choice(kinds))
            near = max(0, number - 3)
            first = number - 1 if draw.random() < 0.8 else int(draw.integers(near, number))
            self.plan.append((kind, first, int(draw.integers(near, number))))
            if kind in STEPS:
                self.steps[str(number)] = STEPS[kind]()

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for number, (kind, i, j) in enumerate(self.plan, 1):
            a, b = made[i], made[j]
            if kind in STEPS:
                made.append(self.steps[str(number)](a))
            elif kind == "cat":
                made.append(torch.cat((a[..., :4], b[..., 4:]), -1))
            elif kind == "swap":
                made.append(a.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2))
            else:
                made.append(a + b if kind == "add" else a * b)
        return made[-1]


def test_random_graphs_keep_their_values_under_random_factors() -> None:
    reached = 0
    for seed in range(30):
        torch.manual_seed(seed)
        model = Random(seed).double()
        x = sequence()
        gm = whole_graph(model, Example((x,)))
        assert isinstance(gm, fx.GraphModule)
        with torch.no_grad():
            before = model(x)
            for group in scalable(gm)[0]:
                reached += len(group.members)
                ledger = Ledger(gm)
                factors = torch.exp(torch.randn(group.producer.count, dtype=torch.float64))
                ledger.scale(group, torch.where(group.free, factors, 1.0))
                ledger.write()
            assert float((model(x) - before).abs().max()) <= 1e-10 * float(before.abs().max()), seed
    assert reached > 30


class Refused(nn.Module):
    """A norm and two weights; what `BETWEEN` has under `how` stands between."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.LayerNorm(8, elementwise_affine=how != "bare norm")
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.vector = nn.Parameter(torch.rand(8))
        if how == "same bias":
            self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.norm(x)
        return BETWEEN[self.how](self, x, h, self.first(h))


Between = Callable[[Refused, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
BETWEEN: dict[str, Between] = {
    "residual": lambda m, x, h, y: (m.second(y + h),),
    "gelu": lambda m, x, h, y: (m.second(F.gelu(y)),),
    "output": lambda m, x, h, y: (m.second(y), y),
    "tied": lambda m, x, h, y: (m.second(m.second(y)),),
    "itself": lambda m, x, h, y: (m.second(y * y),),
    "turned": lambda m, x, h, y: (m.second(y + y.flip(-1)),),
    "turned input": lambda m, x, h, y: (m.second(y.transpose(-1, -2)),),
    "mean": lambda m, x, h, y: (m.second(y.mean(-1, keepdim=True).expand(2, 8, 8)),),
    "key": lambda m, x, h, y: (m.second(F.scaled_dot_product_attention(x, y, y)),),
    "bias": lambda m, x, h, y: (torch.addmm(y[0], y[0], m.second.weight),),
    "vector": lambda m, x, h, y: (m.second(y * m.norm.bias),),
    "own vector": lambda m, x, h, y: (m.second(y.relu() * m.vector),),
    "same bias": lambda m, x, h, y: (m.second(y),),
    "bare norm": lambda m, x, h, y: (m.second(y),),
}
"""From the input, the norm's result and the first weight's."""


@pytest.mark.parametrize(
    ("how", "path", "reason"),
    [
        ("residual", "first.weight", "norm.weight also feeds add, a sum with something else"),
        ("residual", "second.weight", "first.weight also feeds add, a sum with something else"),
        ("gelu", "second.weight", "its input comes through gelu"),
        ("output", "second.weight", "first.weight also feeds an output of the model"),
        ("tied", "second.weight", "first.weight also feeds second.weight, which is also read elsewhere"),
        ("itself", "second.weight", "first.weight also feeds a product with itself"),
        ("turned", "second.weight", "first.weight also feeds add, a sum with something else"),
        ("turned input", "second.weight", "first.weight also feeds second.weight, which mixes channels"),
        ("mean", "second.weight", "first.weight also feeds mean, which mixes channels"),
        ("key", "second.weight", "first.weight also feeds the query or key of attention"),
        ("bias", "second.weight", "first.weight also feeds something other than the input of second.weight"),
        ("vector", "first.weight", "its input comes from %layer_norm: norm.bias is also read elsewhere"),
        ("same bias", "second.weight", "its input comes from %linear: first.bias is also read elsewhere"),
        ("bare norm", "first.weight", "its input comes from %layer_norm: layer_norm has no scale"),
    ],
)
def test_what_cannot_be_reached_says_why(how: str, path: str, reason: str) -> None:
    x = torch.randn(2, 8, 8, dtype=torch.float64)
    gm = graph_of(Refused(how).double(), x)
    assert (path, False, reason) in [(r.path, r.reached, r.what) for r in scalable(gm)[1]]


def test_the_nearest_takes_the_factors() -> None:
    gm = graph_of(Refused("own vector").double(), torch.randn(2, 8, 8, dtype=torch.float64))
    assert texts(gm) == ["norm.weight -> first.weight (8 of 8)", "vector -> second.weight (8 of 8)"]


class Handed(nn.Module):
    """Two weights between which a function stands that hands factors on."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(8, 8), between, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.relu() + y / 2,
        lambda y: y.clamp(min=0).flip(-1),
        lambda y: y.abs().masked_fill(y.new_ones(2, 8, 8).tril() == 0, 0.0),
        lambda y: torch.roll(y, 3, -1).mean(1, keepdim=True),
        lambda y: torch.stack((y, -y)),
        lambda y: y.sum(1),
        lambda y: y.new_ones(2, 8, 8).tril() @ y,
        lambda y: F.scaled_dot_product_attention(y.new_ones(2, 8, 8), y.new_ones(2, 8, 8), y),
        lambda y: F.max_pool1d(y.transpose(1, 2), 2).transpose(1, 2),
        lambda y: F.interpolate(y.transpose(1, 2), scale_factor=2).transpose(1, 2),
        lambda y: y.to(torch.float32).to(torch.float64),
    ],
)
def test_what_hands_factors_on(between: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Handed(between).double(), torch.randn(2, 8, 8, dtype=torch.float64)
    gm = graph_of(model, x)
    (group,) = scalable(gm)[0]
    assert str(group) == "first.weight -> second.weight"
    with torch.no_grad():
        before = model(x)
        ledger = Ledger(gm)
        ledger.scale(group, 2.0 ** torch.randint(-3, 4, (8,)).double())
        ledger.write()
        same(before, model(x))
