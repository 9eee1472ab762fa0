"""Whole steps of training under every estimator: what is added to gradients, resuming, checkpoints, compiling."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rhoc
from rhoc.compiler.spec import load_spec
from rhoc.runtime.estimators import (
    Banded,
    BlockNoise,
    Clip,
    Estimator,
    Noise,
    Soft,
    SparseRefined,
    Stochastic,
    StraightThrough,
    Trust,
)
from rhoc.runtime.projection import Project, project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.schedule import Schedule
from rhoc.runtime.schedules import advance
from rhoc.runtime.stages import Codebook, Entropy, Hadamard, Quantize, Sparsify, Stage

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = Quantize(3, strategy="channel", observer="rms", grid="midrise")
SPARSE = Sparsify(sparsity_structure="2:4")


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES: dict[str, tuple[Representation, tuple[Estimator, ...]]] = {
    "ste": (chain(GRID), (StraightThrough(),)),
    "clip": (chain(Hadamard(8), GRID), (Clip(),)),
    "clip, zero point": (chain(Quantize(3, symmetric=False, strategy="channel")), (Clip(0.9),)),
    "trust": (chain(Hadamard(8), GRID), (Trust(),)),
    "trust, vectors": (chain(Hadamard(8), Codebook(2, 1, 3, "gaussian")), (Trust(radius=1.5),)),
    "trust, coded": (chain(Entropy(chain(GRID))), (Trust(),)),
    "banded": (chain(Hadamard(8), Sparsify(0.5), GRID), (Banded(p=0.2),)),
    "sr_ste": (chain(SPARSE), (SparseRefined(0.01),)),
    "sr_ste, rotated": (chain(Hadamard(8), SPARSE, GRID), (SparseRefined(0.01),)),
    "sr_ste, masked": (chain(Hadamard(8), SPARSE, GRID), (Trust(), SparseRefined(0.01))),
    "noise": (chain(Hadamard(8), GRID), (Noise(),)),
    "noise, measured": (chain(Codebook(2, 1, 3, "gaussian")), (Noise(),)),
    "block_noise": (chain(GRID), (BlockNoise(0.5, 4),)),
    "block_noise, zero": (chain(Codebook(4, 1, 4, "gaussian")), (BlockNoise(0.2, zero=True),)),
    "stochastic": (chain(Hadamard(8), GRID), (Stochastic(),)),
    "soft": (chain(SPARSE, GRID), (Soft(0.2, floor=0.1),)),
    "several": (
        chain(Hadamard(8), SPARSE, GRID),
        (Stochastic(), BlockNoise(0.5), Trust(), SparseRefined(0.01)),
    ),
}


class Net(nn.Module):
    """Two layers with projected weights, the first one's inputs projected too."""

    def __init__(self, name: str) -> None:
        super().__init__()
        representation, estimators = CASES[name]
        self.first = nn.Parameter(normal(24, 16, seed=1).float() / 4)
        self.second = nn.Parameter(normal(8, 24, seed=2).float() / 5)
        self.projections = nn.ModuleList(Project(representation, estimators) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.projections[2](x) @ self.projections[0](self.first).mT)
        return hidden @ self.projections[1](self.second).mT


class Training:
    """A model, its optimizer, and batches that follow from the step."""

    def __init__(self, name: str) -> None:
        self.model = Net(name)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)

    def run(self, steps: range) -> None:
        for step in steps:
            x, target = normal(12, 16, seed=10 + step).float(), normal(12, 8, seed=50 + step).float()
            self.optimizer.zero_grad()
            (self.model(x) - target).square().mean().backward()
            self.optimizer.step()


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_five_and_five_after_resuming(name: str) -> None:
    torch.manual_seed(3)
    whole = Training(name)
    whole.run(range(10))
    torch.manual_seed(3)
    half = Training(name)
    half.run(range(5))
    saved = copy.deepcopy((half.model.state_dict(), half.optimizer.state_dict(), torch.get_rng_state()))
    torch.manual_seed(99)
    resumed = Training(name)
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    resumed.run(range(5, 10))
    for parameter, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(parameter, expected)
        assert parameter.isfinite().all()


def gradients(call: object, model: Net, x: Tensor) -> list[Tensor]:
    """The result and the gradients of one step under one seed."""
    assert callable(call)
    model.zero_grad()
    torch.manual_seed(5)
    result = call(x)
    result.square().sum().backward()
    return [result.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", CASES)
def test_checkpointing_changes_nothing(name: str) -> None:
    model, x = Net(name), normal(12, 16).float()
    plain = gradients(model, model, x)
    again = gradients(lambda x: checkpoint(model, x, use_reentrant=False), model, x)
    assert len(plain) == 3
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))


@pytest.fixture
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", CASES)
def test_compiling_changes_nothing(name: str) -> None:
    model, x = Net(name), normal(12, 16).float()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(model, model, x), gradients(compiled, model, x), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


# Sparse-refined straight-through


@pytest.mark.parametrize("structure", ["2:4", "1:4", "unstructured"])
@pytest.mark.parametrize("rotated", [False, True])
def test_pruned_weights_decay(structure: str, rotated: bool) -> None:
    x, upstream = normal(16, 32), normal(16, 32, seed=1)
    sparse = Sparsify(0.6) if structure == "unstructured" else Sparsify(sparsity_structure=structure)
    turn = chain(*([Hadamard(8)] if rotated else []))
    leaf = x.clone().requires_grad_()
    project_with_gradient(leaf, chain(*turn.stages, sparse), (SparseRefined(0.3),)).backward(upstream)
    latent = turn.encode(x).carry
    if structure == "unstructured":
        order = latent.abs().ravel().argsort()
        pruned = torch.zeros(512, dtype=torch.bool)
        pruned[order[: round(0.6 * 512)]] = True
        pruned = pruned.reshape(16, 32)
    else:
        ranks = latent.abs().reshape(16, 8, 4).argsort(-1).argsort(-1)
        pruned = (ranks < 4 - int(structure[0])).reshape(16, 32)
    expected = upstream + turn.encode(0.3 * latent * pruned).carry
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-12)


def test_what_is_added_is_not_masked_and_adds_up() -> None:
    x, upstream = normal(8, 16), normal(8, 16, seed=1)
    r = chain(SPARSE, GRID)
    kept = r.view(x).kept
    assert kept is not None
    for estimators in (
        (Banded(p=0.0), SparseRefined(0.25), SparseRefined(0.5)),
        (SparseRefined(0.75), Banded(p=0.0)),
    ):
        leaf = x.clone().requires_grad_()
        project_with_gradient(leaf, r, estimators).backward(upstream)
        assert leaf.grad is not None
        expected = torch.where(kept, upstream, 0.75 * x)
        torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-15)


def test_a_rotation_that_is_kept_turns_what_is_added_back() -> None:
    x, upstream = normal(8, 16), normal(8, 16, seed=1)
    r, turn = chain(Hadamard(8), SPARSE), chain(Hadamard(8))
    kept = r.view(x).kept
    assert kept is not None
    leaf = x.clone().requires_grad_()
    project_with_gradient(leaf, r, (SparseRefined(0.5),), keep_rotated=True).backward(upstream)
    latent = turn.encode(x).carry
    expected = turn.encode(upstream + 0.5 * torch.where(kept, 0.0, latent)).carry
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-12)


def test_nothing_is_added_in_eval_and_where_nothing_is_pruned_to() -> None:
    module = Project(chain(SPARSE), (SparseRefined(0.5),)).eval()
    leaf = normal(4, 8).requires_grad_()
    module(leaf).sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad == 1).all()


def test_decay_settles_the_mask() -> None:
    # Without a loss the gradient is the decay alone: pruned weights go to zero, the others stay.
    start = normal(8, 16)
    latent, module = start.clone().requires_grad_(), Project(chain(SPARSE), (SparseRefined(0.5),))
    optimizer = torch.optim.SGD([latent], lr=0.2)
    kept = module(start) != 0
    for _ in range(20):
        optimizer.zero_grad()
        (0 * module(latent)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(latent.detach(), torch.where(kept, start, start * 0.9**20), rtol=1e-12, atol=0)


@pytest.mark.parametrize("decay", [-1.0, float("nan"), float("inf")])
def test_decay_is_a_number(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay must be a number that is not negative, got {decay}"):
        SparseRefined(decay)


def test_decay_needs_something_pruned() -> None:
    with pytest.raises(
        ValueError, match=r"'sr_ste' needs a sparse stage, and quantize\(.*\) has none; use 'ste'"
    ):
        Project(chain(GRID), (SparseRefined(),))
    Project(Representation(), (SparseRefined(),))


# Schedules and specs


def test_a_temperature_goes_down_step_by_step() -> None:
    x = normal(4, 16)
    schedule = Schedule("estimator.0.temperature", 2.0, "linear")
    module = Project(chain(GRID), (Soft(0.5),), schedules=(schedule,))
    fixed = [Project(chain(GRID), (Soft(t),))(x.clone().requires_grad_()) for t in (2.0, 1.25, 0.5)]
    for step, expected in zip((0, 2, 4), fixed, strict=True):
        advance(module, step, 4)
        assert torch.equal(module(x.clone().requires_grad_()), expected)


SPEC = """
version: 1
rules:
  - targets: [Linear]
    weights: {weights}
    estimator: {{weights: {estimator}}}
"""


def test_specs_schedule_a_temperature(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    text = SPEC.format(weights="int4", estimator="{kind: soft, temperature: 0.01}")
    path.write_text(f"{text}    schedule: {{field: estimator.weights.0.temperature, start: 1.0}}\n")
    model = rhoc.compile(nn.Sequential(nn.Linear(32, 16)), path).trainable()
    x, results = normal(4, 32).float(), []
    for step in (0, 5, 10):
        advance(model, step, 10)
        results.append(model(x).detach())
    hard = model.eval()(x).detach()
    off = [float((result - hard).norm()) for result in results]
    assert off[0] > off[1] > off[2] > 0


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("{kind: block_noise, p: 0.5}", (BlockNoise(0.5),)),
        ("{kind: block_noise, p: 0.1, block: 8, zero: true}", (BlockNoise(0.1, 8, True),)),
        ("{kind: noise, gmse: 0.01}", (Noise(0.01),)),
        ("[{kind: clip, factor: 1.5}, stochastic]", (Clip(1.5), Stochastic())),
        ("{kind: soft, temperature: 0.05, floor: 0.1}", (Soft(0.05, 0.1),)),
        ("[sr_ste, {kind: trust, factor: 2}]", (SparseRefined(), Trust(2.0))),
    ],
)
def test_specs_name_them(tmp_path: Path, estimator: str, expected: tuple[Estimator, ...]) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(SPEC.format(weights="2of4-int4", estimator=estimator), encoding="utf-8")
    (rule,) = load_spec(path).rules
    assert rule.weight_estimators == expected
    assert rule.input_estimators == (StraightThrough(),)
    compiled = rhoc.compile(nn.Sequential(nn.Linear(32, 16)), path)
    model = compiled.trainable()
    torch.manual_seed(0)
    x = normal(4, 32).float()
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert np.allclose(model.eval()(x).numpy(), compiled.reference()(x).numpy(), atol=1e-5)
