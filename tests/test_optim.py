"""The optimiser against hand-written steps, the schedule against its closed form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from rhoc.runtime.corpus import Corpus
from rhoc.runtime.determinism import seeded
from rhoc.runtime.errors import RequestError
from rhoc.runtime.learning_rates import Cosine
from rhoc.runtime.llama import Llama, LlamaShape
from rhoc.runtime.optim import build_optimizer, default_learning_rate, width_of
from rhoc.runtime.optimizer_choice import OptimizerChoice
from rhoc.runtime.train import TrainSettings, train

SETTINGS = TrainSettings(
    tokens=10 * 2 * 16, batch_size=2, context=16, learning_rate=0.01, eval_tokens=64, seed=3
)
SHAPE = LlamaShape(width=16, layers=1, heads=2, hidden=32, vocabulary=64, context=16)


def text() -> Corpus:
    tokens = np.random.default_rng(0).integers(0, 64, 3000)
    return Corpus("numbers", 64, tokens[:2500], tokens[2500:])


def test_the_schedule_is_its_closed_form() -> None:
    schedule = Cosine(peak=2.0, steps=100, warmup_fraction=0.1, final_fraction=0.1)
    rates = [schedule(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[9] == 2.0
    for step in range(10, 100):
        angle = math.pi * (step - 9) / 90
        assert rates[step] == pytest.approx(0.2 + 1.8 * math.cos(angle / 2) ** 2)  # half-angle form
    assert rates[-1] == pytest.approx(0.2)
    assert Cosine(1.0, 100, 0.0, 1.0)(0) == 1.0
    assert [Cosine(1.0, 1)(0), Cosine(1.0, 4, 1.0)(3)] == pytest.approx([0.1, 1.0])


def test_the_derived_learning_rate() -> None:
    assert default_learning_rate(64) == pytest.approx(0.004)
    assert default_learning_rate(32) == pytest.approx(2 * default_learning_rate(64))
    assert width_of(Llama(LlamaShape(width=48, layers=2, heads=3, hidden=128))) == 48
    assert width_of(nn.Sequential(nn.Conv2d(5, 7, 3), nn.Linear(343, 9))) == 45
    with pytest.raises(RequestError, match="no matrix to derive a learning rate from; give learning_rate"):
        width_of(nn.BatchNorm1d(4))
    model = Llama(SHAPE)
    result = train(model, text(), dataclasses.replace(SETTINGS, learning_rate=None))
    assert result.learning_rate == pytest.approx(0.016)


def test_steps_are_adamw_with_decay_on_matrices_and_a_clipped_gradient() -> None:
    """Two steps by hand, after Loshchilov and Hutter (arXiv 1711.05101), in float64."""
    corpus = text()
    model = Llama(SHAPE).double()
    with seeded(1):
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    settings = dataclasses.replace(
        SETTINGS, tokens=64, clip=0.1, weight_decay=0.2, warmup_fraction=0.5, learning_rate=0.1
    )
    byhand = Llama(SHAPE).double()
    byhand.load_state_dict(model.state_dict())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in byhand.parameters()]
    for step, rate in enumerate((0.1, 0.01)):
        batch = corpus.batch(step, batch_size=2, context=16, seed=3)
        shares = torch.log_softmax(byhand(batch[:, :-1]), -1)
        loss = -shares.gather(-1, batch[:, 1:, None]).mean()
        gradients = torch.autograd.grad(loss, list(byhand.parameters()))
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradients))
        assert norm > 0.1
        with torch.no_grad():
            for p, g, (m, v) in zip(byhand.parameters(), gradients, moments, strict=True):
                g = g * 0.1 / norm
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.95).add_(0.05 * g * g)
                if p.dim() == 2:
                    p.mul_(1 - rate * 0.2)
                spread = (v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
                p.sub_(rate * m / (1 - 0.9 ** (step + 1)) / spread)
    train(model, corpus, settings)
    for (name, p), q in zip(model.named_parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7, msg=name)


def test_only_trainable_parameters_are_given_to_the_optimiser() -> None:
    model = Llama(SHAPE)
    model.embed_tokens.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerChoice(), 0.1)
    given = sum(len(group["params"]) for group in optimizer.param_groups)
    assert given == len(list(model.parameters())) - 1
