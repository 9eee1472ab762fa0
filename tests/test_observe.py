"""What is seen of parameters while a model runs: which operation reads each, and through views what it sums over."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.compiler.example import Example
from rhoc.compiler.observe import observe
from rhoc.runtime.arrangement import PLAIN
from rhoc.runtime.operand import operand
from rhoc.runtime.representation import Representation
from rhoc.runtime.slots import Slots
from rhoc.runtime.stages import Quantize
from rhoc.runtime.views import follow, own_dimensions

from .dependence import dependence, kept, summed
from .projected import normal

Look = Callable[[Tensor], Tensor]


class Reads(nn.Module):
    """One parameter, and what is done with it."""

    def __init__(self, shape: tuple[int, ...], forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(*shape))
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def seen(shape: tuple[int, ...], forward: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Any:
    model = Reads(shape, forward)
    return observe(model, Example((x,)))[id(model.weight)]


def looks(choice: random.Random, w: Tensor) -> list[tuple[str, Look]]:
    """Ways of looking at a tensor of this shape in another way."""
    rank = w.dim()
    i, j = choice.sample(range(rank), 2) if rank > 1 else (0, 0)
    order = choice.sample(range(rank), rank)
    half = choice.randrange(rank)
    found: list[tuple[str, Look]] = [
        ("transpose", lambda t: t.transpose(i, j)),
        ("function", lambda t: torch.transpose(t, dim0=i, dim1=j)),
        ("permute", lambda t: t.permute(order)),
        ("permuted", lambda t: t.permute(*order)),
        ("named", lambda t: torch.permute(t, dims=order)),
        ("there", lambda t: t.unsqueeze(i).squeeze(i)),
        ("negative", lambda t: t.unsqueeze(-1)[..., 0]),
        ("none", lambda t: t[None, ...].squeeze(0)),
        ("slice", lambda t: t[..., : t.shape[-1]]),
        ("to", lambda t: t.to(torch.float64).contiguous()),
        ("flatten", lambda t: t.flatten(0, 1) if t.dim() > 2 else t),
        ("reshape", lambda t: t.reshape(-1, t.shape[-1])),
        ("view", lambda t: t.view(t.shape) if t.is_contiguous() else t),
        ("chunk", lambda t: t.chunk(2, half)[0]),
        ("narrow", lambda t: t.narrow(half, 0, 1) if t.shape[half] == 2 else t),
        ("matrix", lambda t: t.mT if t.dim() > 1 else t),
    ]
    if rank > 2:
        found += [
            ("select", lambda t: t.select(i, 0)),
            ("index", lambda t: t[0]),
            ("last", lambda t: t[..., 0]),
            ("unbind", lambda t: t.unbind(i)[-1]),
            ("merge", lambda t: t.reshape(t.shape[0] * t.shape[1], *t.shape[2:])),
        ]
    splits = [d for d in range(rank) if w.shape[d] in (4, 6)]
    if splits and rank < 4:
        d = splits[0]
        found += [("split", lambda t: t.unflatten(d, (2, -1)))]
    return found


@pytest.mark.parametrize("seed", range(150))
def test_through_any_views_the_matrix_is_what_the_product_sums_over(seed: int) -> None:
    choice = random.Random(seed)
    shape = tuple(choice.choice((2, 3, 4, 6)) for _ in range(choice.randint(2, 3)))
    chain: list[tuple[str, Look]] = []
    view = normal(*shape)
    for _ in range(choice.randint(1, 4)):
        chain.append(choice.choice(looks(choice, view)))
        view = chain[-1][1](view)
    if view.dim() < 2:
        return
    product, size = choice.choice(
        [(F.linear, -1), (torch.matmul, -2)] if view.dim() == 2 else [(torch.matmul, -2)]
    )
    x = normal(2, view.shape[size]).abs() + 1

    def forward(x: Tensor, w: Tensor) -> Tensor:
        for _, look in chain:
            w = look(w)
        return product(x, w)

    observed = seen(shape, forward, x)
    (arrangement,) = observed.operations.values()
    depends = dependence(lambda w: forward(x, w), normal(*shape))
    expected = summed(depends)
    names = [name for name, _ in chain]
    if expected & kept(depends):  # a part of a dimension gives rows, the other is summed over
        assert arrangement == PLAIN, names
    elif "split" in names and arrangement == PLAIN:
        pass  # of the part that could give rows one place is left, which is not looked at
    elif expected:
        order = arrangement.order or tuple(range(len(shape)))
        assert expected <= set(order[len(shape) - arrangement.columns :]), names
        extra = set(order[len(shape) - arrangement.columns :]) - expected
        assert all(not kept(depends) & {d} for d in extra), names  # of which one place is used


def test_views_that_are_not_followed_are_named() -> None:
    observed = seen((4, 6), lambda x, w: F.linear(x, w.roll(1)), normal(2, 6))
    assert not observed.operations
    assert observed.others == {"roll"}
    index = torch.tensor([[0, 1], [1, 2]])
    observed = seen((4, 6), lambda x, w: (w[index] @ x.T).sum(), normal(2, 6))
    assert observed.others == {"__getitem__"}
    assert follow(Tensor.roll, (normal(4, 6), 1), {}, own_dimensions(2), normal(4, 6)) is None


def test_questions_to_a_weight_are_no_use_of_it() -> None:
    def asking(x: Tensor, w: Tensor) -> Tensor:
        assert w.shape[0] == w.size(0)
        assert w.dtype.is_floating_point
        return x * w.numel() * w.dim()

    observed = seen((4, 6), asking, normal(2))
    assert not observed.operations
    assert not observed.others


def test_every_operation_on_a_weight_is_seen() -> None:
    tokens = torch.tensor([0, 3])

    def both(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(F.embedding(tokens, w), w) + w.norm()

    observed = seen((4, 6), both, normal(1))
    assert observed.operations == {"embedding": PLAIN, "linear": PLAIN}
    assert "norm" in "".join(observed.others)


def test_a_model_is_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watched = observe(model, Example((torch.randn(3, 4),)))
    assert set(watched[id(model[0].weight)].operations) == {"linear"}
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_parameter_that_is_not_used_has_nothing_to_show() -> None:
    observed = seen((4, 6), lambda x, w: x, normal(2, 6))
    assert not observed.operations
    assert not observed.others


A4 = Representation((Quantize(4, strategy="token", dynamic=True, grid="midrise"),))


@pytest.mark.parametrize("name", ["T", "index", "chunk", "permute", "plus", "norm"])
def test_operands_carry_their_slots_through_views_and_no_further(name: str) -> None:
    """What multiplies with a view projects its input; what merely computes with the weight does not."""
    weight, x = normal(6, 6), normal(3, 6)
    marked = operand(weight, Slots(input=A4))
    looked: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
        "T": (lambda t: t.T, True),
        "index": (lambda t: t[None].squeeze(0)[:4], True),
        "chunk": (lambda t: t.chunk(2)[1], True),
        "permute": (lambda t: t.permute(1, 0), True),
        "plus": (lambda t: t + 1, False),
        "norm": (lambda t: t / t.norm(), False),
    }
    look, carries = looked[name]
    expected = F.linear(A4.project(x) if carries else x, look(weight))
    found = F.linear(x, look(marked))
    assert type(found) is Tensor
    torch.testing.assert_close(found, expected)
    assert operand(weight, Slots()) is weight
