"""A small residual MLP trained on digits, with outlier channels planted without changing what it computes."""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rhoc.passes.assignment import Assignment, assigned
from rhoc.passes.sites import sites
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

WIDTH, HIDDEN, STEPS = 64, 128, 500


class Block(nn.Module):
    """LayerNorm, ReLU MLP, added back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Digits(nn.Module):
    """Two blocks between an embedding of the pixels and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, 1400 of them, and the 397 others."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(data.target)[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


@lru_cache(maxsize=1)
def _trained() -> Digits:
    images, labels, _, _ = digits()
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = Digits()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(STEPS):
            batch = torch.randint(0, len(images), (64,))
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def trained(planted: bool) -> Digits:
    """A copy of the trained model, with outliers planted where asked."""
    return plant(_trained()) if planted else copy.deepcopy(_trained())


def plant(dense: Digits) -> Digits:
    """A copy that computes the same, with 4 norm channels times 100 and 4 hidden channels times 50."""
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for block in model.blocks:
            block.norm.weight[:4] *= 100
            block.norm.bias[:4] *= 100
            block.up.weight[:, :4] /= 100
            block.up.weight[:4] *= 50
            block.up.bias[:4] *= 50
            block.down.weight[:, :4] /= 50
    return model


def per_tensor(weight: int, inputs: int) -> Assignment:
    """Ints of so many bits, with one scale for a whole tensor."""
    a, b = (Representation((Quantize(bits, strategy="tensor"),)) for bits in (weight, inputs))
    return Assignment(a, b)


class Represented(fx.Interpreter):
    """Runs a graph with weights and inputs as their assignments make them."""

    def run_node(self, n: fx.Node) -> object:
        site = next((site for site in sites(self.module) if site.node is n), None)  # type: ignore[arg-type]
        assignment = assigned(site.weight) if site is not None else None
        if assignment is None:
            return super().run_node(n)
        (x, weight, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        projected = assignment.weight.project(weight)
        return n.target(assignment.input.project(x), projected, *rest, **kwargs)  # type: ignore[operator]


def represented_output(gm: fx.GraphModule, x: Tensor) -> Tensor:
    """What the graph gives with everything in its representation."""
    with torch.no_grad():
        return Represented(gm).run(x)[0]  # type: ignore[no-any-return]
