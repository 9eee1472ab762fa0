"""Every ordered pair of stage kinds, and random triples: encoded, packed, decoded, projected and trained.

No library composes sparsity and quantisation end to end; here every pair composes, or is refused with a reason.
"""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from rhoc.compiler.compile import compile
from rhoc.compiler.spec import from_representation
from rhoc.runtime.errors import RequestError
from rhoc.runtime.estimators import ESTIMATORS, Banded, Estimator
from rhoc.runtime.estimators.step_rule import StepRule
from rhoc.runtime.projection import Project
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import STAGES
from rhoc.runtime.text_parser import from_text

from .examples import EXAMPLES

SHAPE = (32, 64)
KINDS = [stage.kind for stage in STAGES]


def numbers(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def joined(texts: tuple[str, ...]) -> Representation | str:
    """The chain of the stages in some texts, or why there is none."""
    chain = Representation()
    try:
        for text in texts:
            chain = chain >> from_text(text)
        chain.check(SHAPE)
    except (ValueError, RequestError) as error:
        return str(error)
    return chain


def check_stored(chain: Representation) -> None:
    """What is stored is what was declared, and decodes to what training sees."""
    x = numbers(0)
    code = chain.encode(x)
    stored = chain.pack(code)
    layout = chain.layout(SHAPE, x.dtype)
    assert stored.keys() == layout.keys()
    for name, field in layout.items():
        assert field.fits(stored[name]), name
        if not field.variable:
            assert stored[name].nbytes == field.nbytes, name
    projected = chain.project(x)
    assert torch.equal(chain.decode(chain.unpack(stored, SHAPE, x.dtype)), projected)
    assert projected.shape == SHAPE
    assert projected.isfinite().all()


def check_trained(chain: Representation) -> None:
    """Ten steps of training a layer in it: finite, moved, and masks exact at the end."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0], bias=False))
    dense = layer[0].weight.detach().clone()
    compiled = compile(layer, from_representation(chain))
    trainable = compiled.trainable()
    optimizer = torch.optim.SGD(trainable.parameters(), lr=0.5)
    inputs, wanted = numbers(1), numbers(2)[:, : SHAPE[0]]
    for _ in range(10):
        optimizer.zero_grad()
        loss = (trainable(inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    latent = trainable.state_dict()["0.weight"]
    assert not torch.equal(latent, dense)
    view = chain.view(latent)
    if view.kept is not None and chain.core.stages[0].kind == "sparsify":
        pruned = view.projected[~view.kept.expand_as(view.projected)]
        assert (pruned == 0).all()
    packed = compiled.packed(trainable)
    torch.testing.assert_close(packed(inputs), trainable.eval()(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), list(product(KINDS, KINDS)))
def test_every_ordered_pair(first: str, second: str) -> None:
    texts = (EXAMPLES[first][0], EXAMPLES[second][-1])
    chain = joined(texts)
    if from_text(texts[0]).hands_on_numbers:
        assert isinstance(chain, Representation), f"{first} then {second} was refused: {chain}"
        check_stored(chain)
        check_trained(chain)
    else:
        assert isinstance(chain, str)
        assert "cannot follow" in chain
        assert "hands on" in chain, "and says why"


@pytest.mark.parametrize("block", range(8))
def test_two_hundred_random_triples(block: int) -> None:
    chance, made = random.Random(block), 0
    openings = [text for kind in KINDS for text in EXAMPLES[kind] if from_text(text).hands_on_numbers]
    while made < 25:
        texts = (
            chance.choice(openings),
            chance.choice(openings),
            chance.choice(EXAMPLES[chance.choice(KINDS)]),
        )
        chain = joined(texts)
        if isinstance(chain, str):
            assert len(chain) > 20, "a refusal gives its reason"
            continue
        made += 1
        check_stored(chain)
        steps(chain)


def steps(chain: Representation) -> None:
    """Ten steps with the projection alone, under every estimator that means something for the chain."""
    for estimator in meaningful(chain):
        latent = numbers(3).requires_grad_()
        project = Project(chain, (estimator,))
        optimizer = torch.optim.SGD([latent], lr=0.1)
        for _ in range(10 if estimator.kind == "ste" else 2):
            optimizer.zero_grad()
            (project(latent) - numbers(4)).square().sum().backward()
            assert latent.grad is not None
            assert latent.grad.shape == latent.shape
            assert latent.grad.isfinite().all()
            optimizer.step()


def meaningful(chain: Representation) -> list[Estimator]:
    """One of each kind of estimator that takes the chain."""
    found = []
    for kind in ESTIMATORS:
        estimator = Banded(p=0.1) if kind is Banded else kind()
        try:
            estimator.check(chain)
        except ValueError:
            continue
        if not isinstance(estimator, StepRule):  # acts around the steps of an attached optimiser only
            found.append(estimator)
    return found


def test_every_kind_has_examples() -> None:
    assert set(EXAMPLES) == set(KINDS)
    for kind, texts in EXAMPLES.items():
        for text in texts:
            (stage,) = from_text(text).stages
            assert stage.kind == kind
