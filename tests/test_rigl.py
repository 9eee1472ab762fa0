"""RigL against a simulation with masks of its own, and what is attached to an optimiser's steps."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import rhoc
from rhoc.compiler.spec import load_spec
from rhoc.runtime.errors import RequestError, RhocError
from rhoc.runtime.estimators import RigL
from rhoc.runtime.projection import projections
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify
from rhoc.runtime.step_rules import Steps, attach

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.float64]


def spec(every: int = 3, fraction: float = 0.4, until: float = 0.75, **rest: Any) -> dict[str, Any]:
    rule = {
        "targets": "Linear",
        "weights": {"kind": "sparsify", "sparsity": 0.75},
        "estimator": {"weights": {"kind": "rigl", "every": every, "fraction": fraction, "until": until}},
    }
    return {"version": 1, "rules": [{**rule, **rest}]}


def model(seed: int = 0, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 8)).double()


def data(step: int, width: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(10, width, generator=generator, dtype=torch.float64)
    return x, x[:, :8].roll(1, 1)


def run(student: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, parts: int = 1) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        x, y = data(step)
        for piece, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
            ((student(piece) - wanted).square().mean() / parts).backward()
        optimizer.step()


def top(scores: Array, count: int) -> NDArray[np.bool_]:
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


class Simulated:
    """Algorithm 1 with a mask that is kept, on one matrix, under momentum SGD or Adam, in numpy."""

    def __init__(self, weight: Array, kept: int, adam: bool) -> None:
        self.mask = top(np.abs(weight), kept)
        self.weight, self.kept, self.adam = weight * self.mask, kept, adam
        self.first, self.second, self.steps = np.zeros_like(weight), np.zeros_like(weight), 0

    def step(self, gradient: Array, share: float) -> None:
        if share:
            count = round(share * self.kept)
            magnitude = np.where(self.mask, np.abs(self.weight), -1.0)
            left = top(magnitude, self.kept - count)
            grown = top(np.where(left, -1.0, np.abs(gradient)), count)
            self.mask = left | grown
            for held in (self.weight, self.first, self.second):
                held[~self.mask] = 0.0
        gradient = gradient * self.mask
        self.steps += 1
        if not self.adam:
            self.first = 0.9 * self.first + gradient
            self.weight = self.weight - 0.05 * self.first
            return
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean, square = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        self.weight = self.weight - 0.01 * mean / (np.sqrt(square) + 1e-8)


def optimizer_of(student: nn.Module, adam: bool) -> torch.optim.Optimizer:
    if adam:
        return torch.optim.Adam(student.parameters(), 0.01)
    return torch.optim.SGD(student.parameters(), 0.05, momentum=0.9)


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize(("every", "steps"), [(3, 20), (1, 12), (100, 8)])
def test_weights_are_those_of_the_algorithm(adam: bool, every: int, steps: int) -> None:
    student = rhoc.compile(model(), spec(every)).trainable()
    optimizer = optimizer_of(student, adam)
    layers = {name: student.get_parameter(name) for name in ("0.weight", "2.weight")}
    simulated = {
        name: Simulated(w.detach().numpy().copy(), w.numel() - round(0.75 * w.numel()), adam)
        for name, w in layers.items()
    }
    attach(student, optimizer, steps)
    exchanged = 0
    for step in range(steps):
        # The dense gradient, by automatic differentiation of the function of masked weights alone.
        dense = model()
        dense.load_state_dict(student.state_dict())
        x, y = data(step)
        (dense(x) - y).square().mean().backward()
        run(student, optimizer, step, step + 1)
        last = 0.75 * steps
        share = 0.2 * (1 + math.cos(math.pi * step / last)) if 0 < step < last and step % every == 0 else 0.0
        for name, oracle in simulated.items():
            before = oracle.mask
            gradient = dense.get_parameter(name).grad
            assert gradient is not None
            oracle.step(gradient.numpy().copy(), share)
            exchanged += int((before != oracle.mask).sum())
            found = layers[name].detach().numpy()
            np.testing.assert_allclose(found, oracle.weight, rtol=1e-9, atol=1e-12, err_msg=f"{name} {step}")
            assert not found[~oracle.mask].any(), "exactly zero"
    assert (exchanged > 0) == (every < steps)


def test_the_share_decays_by_half_a_cosine() -> None:
    rule = RigL(every=10, fraction=0.3, until=0.75)
    shares = [rule.share(step, 400) for step in range(400)]
    assert [step for step, share in enumerate(shares) if share] == list(range(10, 300, 10))
    assert shares[150] == pytest.approx(0.15)
    assert shares[100] == pytest.approx(0.3 * math.cos(math.pi / 6) ** 2)
    assert RigL(until=0.0).share(100, 400) == 0.0


@pytest.mark.parametrize(
    "weights",
    [
        {"kind": "sparsify", "sparsity": 0.5, "granularity": "row"},
        {"kind": "sparsify", "sparsity_structure": "2:4"},
        {"kind": "sparsify", "sparsity": 0.5, "sparsity_structure": "block:2x2"},
        [{"kind": "sparsify", "sparsity": 0.5}, {"kind": "quantize", "num_bits": 4, "strategy": "tensor"}],
    ],
)
def test_any_pattern_keeps_its_counts(weights: Any) -> None:
    student = rhoc.compile(model(), spec(2, 0.5, 1.0, weights=weights)).trainable()
    optimizer = optimizer_of(student, True)
    attach(student, optimizer, 10)
    weight = student.get_parameter("0.weight")
    (projection, *_) = [p for p in projections(student) if p.path == "0.weight"]
    masks = []
    for step in range(10):
        run(student, optimizer, step, step + 1)
        stage = projection.representation.stages[0]
        assert isinstance(stage, Sparsify)
        active = stage.pattern.spread(stage.choose(weight.detach().abs()), tuple(weight.shape))
        assert not weight[~active].any(), "the projection keeps all that is not zero"
        assert weight.count_nonzero() >= 0.9 * active.sum(), "but for what has no gradient yet"
        masks.append(active)
    assert not torch.equal(masks[0], masks[-1])


@pytest.mark.parametrize("adam", [True, False])
def test_ten_steps_are_five_and_five_more(adam: bool) -> None:
    def fresh(step: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
        student = rhoc.compile(model(), spec(2)).trainable()
        optimizer = optimizer_of(student, adam)
        attach(student, optimizer, 10, step=step)
        return student, optimizer

    whole, optimizer = fresh()
    run(whole, optimizer, 0, 10)
    first, optimizer = fresh()
    run(first, optimizer, 0, 5)
    states = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second, optimizer = fresh(step=5)
    second.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    run(second, optimizer, 5, 10)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_accumulated_parts_make_the_same_step() -> None:
    found = []
    for parts in (1, 2):
        student = rhoc.compile(model(), spec(2)).trainable()
        optimizer = optimizer_of(student, False)
        attach(student, optimizer, 6)
        run(student, optimizer, 0, 6, parts)
        found.append(student.get_parameter("0.weight").detach())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_clipping_sees_the_gradient_of_active_weights_alone() -> None:
    student = rhoc.compile(model(), spec(100)).trainable()
    attach(student, optimizer_of(student, False), 10)
    x, y = data(0)
    (student(x) - y).square().mean().backward()
    for name in ("0.weight", "2.weight"):
        weight = student.get_parameter(name)
        assert weight.grad is not None
        assert not weight.grad[weight == 0].any()
        assert weight.grad[weight != 0].count_nonzero() > weight.count_nonzero() / 2


def test_the_packed_form_keeps_what_is_active() -> None:
    compiled = rhoc.compile(model(), spec(2))
    student = compiled.trainable()
    optimizer = optimizer_of(student, True)
    attach(student, optimizer, 8)
    run(student, optimizer, 0, 8)
    x, _ = data(99)
    expected = student.eval()(x)
    assert torch.equal(compiled.reference(student)[0].weight, student.get_parameter("0.weight"))
    torch.testing.assert_close(compiled.packed(student)(x), expected)


def test_a_schedule_and_exchanges_go_together() -> None:
    schedule = {"field": "weights.0.sparsity", "start": 0.25, "shape": "linear", "end": 0.5}
    student = rhoc.compile(model(), spec(2, schedule=schedule)).trainable()
    optimizer = optimizer_of(student, True)
    attach(student, optimizer, 12)
    weight, counts = student.get_parameter("0.weight"), []
    for step in range(12):
        run(student, optimizer, step, step + 1)
        counts.append(int(weight.count_nonzero()))
    total = weight.numel()
    assert (
        counts
        == [total - round(total * min(0.25 + 0.5 * step / 6, 0.75)) for step in range(6)]
        + [total - round(0.75 * total)] * 6
    )


# Attaching


def test_one_line_advances_schedules_in_a_loop_of_ones_own() -> None:
    student = rhoc.compile(
        model(), spec(estimator="ste", schedule={"field": "weights.0.sparsity", "start": 0})
    ).trainable()
    optimizer = optimizer_of(student, True)
    steps = attach(student, optimizer, 6)
    projection = next(projections(student))
    values = [float(projection.values)]
    for step in range(8):
        run(student, optimizer, step, step + 1)
        values.append(float(projection.values))
    assert values == [0.75 * min(step / 6, 1.0) for step in range(7)] + [0.75, 0.75]
    assert steps.step == 8
    steps.at(3)
    assert float(projection.values) == 0.375
    steps.detach()
    run(student, optimizer, 0, 1)
    assert float(projection.values) == 0.375


def test_attaching_again_takes_the_place_of_the_first() -> None:
    student = rhoc.compile(model(), spec(2)).trainable()
    optimizer = optimizer_of(student, True)
    first = attach(student, optimizer, 10)
    second = attach(student, optimizer, 20, step=4)
    run(student, optimizer, 0, 3)
    assert (first.step, second.step) == (0, 7)
    assert isinstance(second, Steps)
    assert rhoc.attach is attach


def test_a_dense_model_trains_as_ever() -> None:
    plain, attached = model(), model()
    for each, with_rules in ((plain, False), (attached, True)):
        optimizer = optimizer_of(each, True)
        if with_rules:
            attach(each, optimizer, 5)
        run(each, optimizer, 0, 5)
    for ours, theirs in zip(plain.parameters(), attached.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_frozen_weights_are_left_alone() -> None:
    student = rhoc.compile(model(), spec(2)).trainable()
    student.get_parameter("0.weight").requires_grad_(False)
    optimizer = optimizer_of(student, True)
    attach(student, optimizer, 5)
    before = student.get_parameter("0.weight").clone()
    run(student, optimizer, 0, 5)
    assert torch.equal(before, student.get_parameter("0.weight"))
    assert student.get_parameter("2.weight").count_nonzero() == 32


@torch._dynamo.config.patch(error_on_recompile=True)
def test_compiled_steps_exchange_too() -> None:
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        student = rhoc.compile(model(), spec(2)).trainable()
        optimizer = optimizer_of(student, True)
        attach(student, optimizer, 6)
        run(
            torch.compile(student, backend="aot_eager", fullgraph=True) if compiled else student,
            optimizer,
            0,
            6,
        )
        found.append(student.get_parameter("0.weight").detach())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


# What is refused


def test_training_without_an_optimiser_that_is_known_says_so() -> None:
    student = rhoc.compile(model(), spec()).trainable()
    x, _ = data(0)
    with pytest.raises(RequestError, match=r"'rigl' acts around the optimiser's steps.*rhoc\.attach\(model"):
        student(x)
    with torch.no_grad():
        student(x)
    student.eval()(x)


def test_an_optimiser_of_another_model_is_refused() -> None:
    student = rhoc.compile(model(), spec()).trainable()
    with pytest.raises(RequestError, match="trains no weight under 'rigl'"):
        attach(student, optimizer_of(model(), True), 10)


@pytest.mark.parametrize(("steps", "step"), [(0, 0), (10, 11), (10, -1)])
def test_steps_that_are_none(steps: int, step: int) -> None:
    student = rhoc.compile(model(), spec()).trainable()
    with pytest.raises(RequestError, match=f"step {step} of {steps} is none of a training"):
        attach(student, optimizer_of(student, True), steps, step=step)


@pytest.mark.parametrize(
    "stages",
    [(Quantize(4, strategy="channel"),), (Hadamard(4), Sparsify(0.5)), (Sparsify(0.5, scores="given"),)],
)
def test_chains_that_do_not_begin_with_magnitudes(stages: Any) -> None:
    with pytest.raises(ValueError, match="'rigl' needs a chain that begins with sparsify by magnitude"):
        RigL().check(Representation(stages))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is a number of steps"),
        ({"fraction": 1.5}, "fraction must be in"),
        ({"until": -1}, "until"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RigL(**options)


def test_other_slots_and_latents_are_refused() -> None:
    inputs = {"kind": "sparsify", "sparsity": 0.5}
    with pytest.raises(RhocError, match="input_activations: 'rigl' is for weights"):
        load_spec(spec(input_activations=inputs, estimator="rigl"))
    with pytest.raises(
        RhocError, match=r"'rigl' grows weights from zero, where power\(alpha=2\) has no gradient"
    ):
        load_spec(spec(latent="power"))


def test_a_weight_that_is_computed_is_refused() -> None:
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    with pytest.raises(RequestError, match="parametrizations compute it, and rigl needs a parameter"):
        rhoc.compile(normed, spec())
