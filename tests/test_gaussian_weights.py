"""Gaussian weights: what is drawn, what deviations learn, and that a forward pass changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.runtime.errors import RequestError
from rhoc.runtime.estimators import GaussianWeights
from rhoc.runtime.gaussian_ops import GAUSSIAN
from rhoc.runtime.train import train

from .small_net import net, normal
from .tiny_task import SETTINGS, Interrupted, dense, stop_after, task

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = {"kind": "quantize", "num_bits": 4, "strategy": "channel"}
PLAIN = (2.0**-30, 0.05, 0.0)  # floor, ceiling, and no pull


def compiled_with(*estimators: Any, weights: Any = GRID, **more: Any) -> Compiled:
    rule = {"targets": "Linear", "weights": weights, "estimator": {"weights": [*estimators]}, **more}
    return rhoc.compile(net(), {"version": 1, "rules": rule})


def seed(number: int) -> Tensor:
    return torch.tensor(number)


def test_noise_is_normal_with_the_deviations_that_are_given() -> None:
    mean, deviation = torch.full((400, 500), 0.3), torch.full((400, 500), 0.02)
    deviation[:200] = 0.001
    drawn = GAUSSIAN(mean, deviation, seed(1), *PLAIN).double() - 0.3
    for half, sigma in ((drawn[:200], 0.001), (drawn[200:], 0.02)):
        scaled = (half / sigma).numpy().ravel()
        assert abs(scaled.mean()) < 5 / np.sqrt(1e5)
        assert abs(scaled.var() - 1) < 5 * np.sqrt(2 / 1e5)
        assert abs((scaled**4).mean() - 3) < 5 * np.sqrt(96 / 1e5)
    assert torch.equal(GAUSSIAN(mean, deviation, seed(1), *PLAIN), GAUSSIAN(mean, deviation, seed(1), *PLAIN))
    assert not torch.equal(GAUSSIAN(mean, deviation, seed(2), *PLAIN).double() - 0.3, drawn)


@pytest.mark.parametrize("pull", [0.0, 0.25])
def test_gradients_are_those_of_the_noise_that_was_drawn(pull: float) -> None:
    mean, upstream = normal(6, 5).double(), normal(6, 5, seed=1).double()
    deviation = normal(6, 5, seed=2).double() * 0.1
    noise = GAUSSIAN(torch.zeros(6, 5).double(), torch.ones(6, 5).double(), seed(7), *PLAIN)
    leaves = mean.clone().requires_grad_(), deviation.clone().requires_grad_()
    result = GAUSSIAN(*leaves, seed(7), 0.01, 0.05, pull)
    expected = mean + noise * deviation.clamp_min(0.01)
    torch.testing.assert_close(result.detach(), expected, rtol=1e-12, atol=0)
    result.backward(upstream)
    assert torch.equal(leaves[0].grad, upstream)  # type: ignore[arg-type]
    slope = torch.where(deviation >= 0.01, upstream * noise, 0.0) - pull * (deviation < 0.05)
    torch.testing.assert_close(leaves[1].grad, slope, rtol=1e-12, atol=1e-15)


def test_first_deviations_follow_the_distance_to_powers_of_two() -> None:
    weight = normal(40, 50) * 0.1
    found = GaussianWeights().first(weight).double().numpy()
    size = np.abs(weight.double().numpy())
    low = 2.0 ** np.floor(np.log2(size))
    share = (size - low) / size * (2 * low - size) / size
    expected = 0.0025 * share / np.quantile(share, 0.75, method="inverted_cdf")
    np.testing.assert_allclose(found, np.clip(expected, 2.0**-30, 0.05), rtol=1e-5)


@pytest.mark.parametrize(
    "weight", [torch.zeros(9), torch.tensor([1.0, -0.5, 0.25, 0.0]), torch.tensor([0.5, 0.5, 0.5, 0.5, 0.3])]
)
def test_zeros_powers_and_a_quartile_of_zero_start_at_the_floor(weight: Tensor) -> None:
    assert torch.equal(GaussianWeights(floor=1e-4).first(weight), torch.full_like(weight, 1e-4))
    assert not len(GaussianWeights().first(torch.zeros(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_pass_changes_nothing_and_eval_draws_nothing(dtype: torch.dtype) -> None:
    model = compiled_with("gaussian").trainable().to(dtype)
    before, x = copy.deepcopy(model.state_dict()), normal(5, 16).to(dtype)
    drawn = [model.train()(x) for _ in range(2)]
    assert not torch.equal(*drawn)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(model.eval()(x), model.eval()(x))


def test_in_eval_it_is_what_is_packed() -> None:
    compiled = compiled_with("gaussian")
    model, x = compiled.trainable(), normal(5, 16)
    with torch.no_grad():
        assert torch.equal(compiled.reference(model)(x), model.eval()(x))
        torch.testing.assert_close(compiled.packed(model)(x), model(x), rtol=1e-5, atol=1e-6)
        assert torch.equal(compiled.reference()(x), model(x))


def test_checkpointed_activations_draw_the_same_noise() -> None:
    model = compiled_with("gaussian").trainable()
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        torch.manual_seed(3)
        run(normal(6, 16)).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == 6
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_compiled_whole_it_is_the_same() -> None:
    eager = compiled_with("gaussian").trainable()
    other = compiled_with("gaussian").trainable()
    captured = torch.compile(other, backend="aot_eager", fullgraph=True)
    for run in (eager, captured):
        torch.manual_seed(3)
        run(normal(6, 16)).square().mean().backward()
    for (name, one), two in zip(eager.named_parameters(), other.parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.equal(one.grad, two.grad), name  # type: ignore[arg-type]


def test_deviations_shrink_where_noise_hurts_and_grow_where_it_does_not() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(32, 4, bias=False))
    rule = {
        "targets": "Linear",
        "weights": GRID,
        "estimator": {"weights": {"kind": "gaussian", "pull_rate": 0.01}},
    }
    model = rhoc.compile(layer, {"version": 1, "rules": rule}).trainable()
    target, inputs = layer[0].weight.detach().clone(), torch.ones(64, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for number in range(100):
        x = inputs * normal(64, 32, seed=number)
        x[:, 16:] = 0
        optimizer.zero_grad()
        (model(x) - x @ target.T).square().mean().backward()
        optimizer.step()
    deviations = model.state_dict()["0.weight_deviation"]
    assert float(deviations[:, :16].max()) < 0.04
    assert float(deviations[:, 16:].min()) > 0.05


@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_that_was_killed_ends_on_the_same_bits(stop: int, tmp_path: Path) -> None:
    spec = {
        "version": 1,
        "rules": {"targets": "Linear", "weights": GRID, "estimator": {"weights": "gaussian"}},
    }
    settings = replace(SETTINGS, learned_rate=0.001)
    students = [rhoc.compile(dense(), spec).trainable() for _ in range(3)]
    expected = train(students[0], task(), settings)
    given: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Interrupted):
        train(students[1], task(), settings, listener=stop_after(stop), **given)
    assert train(students[2], task(), settings, **given).loss == expected.loss
    for name, tensor in students[0].state_dict().items():
        assert torch.equal(tensor, students[2].state_dict()[name]), name


REFUSED: dict[str, tuple[Any, str]] = {
    "order": (({"kind": "gaussian", "start": 0.1},), "floor <= start <= ceiling"),
    "pull": (({"kind": "gaussian", "pull_rate": -1.0},), "pull_rate must be a number"),
    "beside": (("gaussian", "trust"), "'gaussian' says how gradients pass"),
    "twice": (("gaussian", {"kind": "gaussian", "pull_rate": 0.0}), "'gaussian' says how gradients pass"),
    "learned": (("gaussian", "lsq"), "leave out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused(name: str) -> None:
    estimators, words = REFUSED[name]
    with pytest.raises(RequestError, match=words):
        compiled_with(*estimators)


def test_rotations_latents_and_inputs_are_refused() -> None:
    with pytest.raises(RequestError, match="rotates them; use 'noise'"):
        compiled_with("gaussian", weights=[{"kind": "hadamard", "block": 8}, GRID])
    with pytest.raises(RequestError, match="'gaussian' trains numbers as they are, and latent"):
        compiled_with("gaussian", latent={"kind": "power", "alpha": 2})
    inputs = {"kind": "quantize", "num_bits": 8, "strategy": "token", "dynamic": True}
    rule = {"targets": "Linear", "input_activations": inputs, "estimator": {"input_activations": "gaussian"}}
    with pytest.raises(RequestError, match="'gaussian' is for weights"):
        rhoc.compile(net(), {"version": 1, "rules": rule})
