"""What is done around an optimiser's step: decay, the limit in cells, and the count of oscillations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rhoc
from rhoc.runtime.errors import RequestError
from rhoc.runtime.optim import attach_decay, build_optimizer, peak_rate, set_rate
from rhoc.runtime.optimizer_choice import OptimizerChoice
from rhoc.runtime.oscillation import Oscillation
from rhoc.runtime.projection import latent_parameters
from rhoc.runtime.step_limit import StepLimit

from .tiny_task import dense, student

THREE = {
    "version": 1,
    "name": "three",
    "rules": {
        "targets": "Linear",
        "weights": {"kind": "quantize", "num_bits": 2, "grid": "midtread", "strategy": "tensor"},
    },
}
"""The levels -s, 0 and s, where s is the largest magnitude; a cell is s wide."""


def row(*values: float, spec: object = THREE) -> tuple[nn.Module, nn.Parameter]:
    """The trainable form of one row of weights in float64, and the weights."""
    layer = nn.Linear(len(values), 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([values]))
    model = rhoc.compile(layer, spec).trainable()  # type: ignore[arg-type]
    return model, dict(model.named_parameters())["weight"]


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, *moves: float) -> None:
    """One step of plain SGD at rate 1 that moves the weights by these."""
    weight.grad = -torch.tensor([moves], dtype=weight.dtype)
    optimizer.step()


# Decay


def decayed(choice: OptimizerChoice, latent: float | None) -> dict[str, Tensor]:
    """By what each parameter is multiplied in one step with a gradient of zero, at rate 0.5 and decay 0.2."""
    model = student()
    nn.init.constant_(dict(model.named_parameters())["0.bias"], 1.0)
    model.register_parameter("free", nn.Parameter(torch.ones(3, 3)))
    optimizer = build_optimizer(model, choice, 0.2, latent)
    attach_decay(optimizer)
    set_rate(optimizer, 0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name: (p / before[name]).detach() for name, p in model.named_parameters() if before[name].all()}


@pytest.mark.parametrize("name", ["adamw", "adam", "nadam", "sgd", "rmsprop", "adagrad"])
@pytest.mark.parametrize(("latent", "factor"), [(None, 0.9), (0.0, 1.0), (0.4, 0.8)])
def test_decay_is_decoupled_under_every_optimiser(name: str, latent: float | None, factor: float) -> None:
    factors = decayed(OptimizerChoice(name), latent)
    expected = {"0.weight": factor, "2.weight": factor, "free": 0.9, "0.bias": 1.0}
    for parameter, by in expected.items():
        torch.testing.assert_close(
            factors[parameter], torch.full_like(factors[parameter], by), rtol=1e-6, atol=0.0
        )


def test_the_derived_rate_is_for_optimisers_like_adam() -> None:
    assert peak_rate(dense(), OptimizerChoice("nadam"), None) == pytest.approx(0.004 * 64 / 8)
    assert peak_rate(dense(), OptimizerChoice("sgd"), 0.3) == 0.3
    with pytest.raises(RequestError, match="not for sgd; give learning_rate yourself"):
        peak_rate(dense(), OptimizerChoice("sgd"), None)


def test_parameters_that_an_optimiser_does_not_take() -> None:
    with pytest.raises(RequestError, match="muon cannot be made: Muon only supports 2D parameters"):
        build_optimizer(dense(), OptimizerChoice("muon"), 0.1)


# The limit


def test_a_long_step_is_scaled_to_the_limit_in_cells() -> None:
    model, weight = row(2.0, -1.0, 0.5, 0.0)  # s = 2: a cell is 2 wide
    optimizer = torch.optim.SGD([weight], lr=1.0)
    StepLimit(model, 0.25).attach(optimizer)
    step(optimizer, weight, 1.0, -1.0, 1.0, -1.0)  # its root mean square is 1, and 0.25 * 2 is the most
    assert weight.tolist() == [[2.5, -1.5, 1.0, -0.5]]
    step(optimizer, weight, 3.0, 0.0, 0.0, 0.0)  # s = 2.5 now: the most is 0.625, and this one is 1.5
    assert weight[0, 0].item() == pytest.approx(2.5 + 3.0 * 0.625 / 1.5, rel=1e-15)
    assert weight[0, 1:].tolist() == [-1.5, 1.0, -0.5]


def test_a_short_step_is_taken_to_the_bit() -> None:
    limited, plain = (row(2.0, -1.1, 0.3, 0.7) for _ in range(2))
    optimizers = [torch.optim.SGD([weight], lr=1.0) for _, weight in (limited, plain)]
    StepLimit(limited[0], 0.25).attach(optimizers[0])
    for optimizer, (_, weight) in zip(optimizers, (limited, plain), strict=True):
        step(optimizer, weight, 0.1, -0.37, 0.41, 0.0)
    assert torch.equal(limited[1], plain[1])


def test_all_that_a_step_does_is_limited_and_the_rest_of_the_model_is_not() -> None:
    model = rhoc.compile(dense(), THREE).trainable()
    optimizer = build_optimizer(model, OptimizerChoice("sgd"), 0.9)
    StepLimit(model, 1e-3).attach(optimizer)
    attach_decay(optimizer)
    set_rate(optimizer, 1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: (p - before[name]).detach() for name, p in model.named_parameters()}
    cell = float(before["0.weight"].abs().amax())
    assert float(moved["0.weight"].square().mean().sqrt()) == pytest.approx(1e-3 * cell, rel=1e-4)
    wanted = 0.1 * before["0.weight"] - 1 - before["0.weight"]  # decay by 0.9, then the gradient of ones
    torch.testing.assert_close(
        moved["0.weight"] / moved["0.weight"].norm(), wanted / wanted.norm(), rtol=1e-4, atol=1e-6
    )
    assert moved["0.bias"].tolist() == [-1.0] * 16


def test_a_limit_can_be_taken_off() -> None:
    model, weight = row(2.0, -1.0)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for handle in StepLimit(model, 0.01).attach(optimizer):
        handle.remove()
    step(optimizer, weight, 1.0, 1.0)
    assert weight.tolist() == [[3.0, 0.0]]


def test_weights_of_zero_have_no_cell_and_still_move() -> None:
    model, weight = row(0.0, 0.0)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    StepLimit(model, 0.01).attach(optimizer)
    step(optimizer, weight, 1.0, -1.0)
    assert weight.tolist() == [[1.0, -1.0]]


def test_limits_that_mean_nothing() -> None:
    with pytest.raises(RequestError, match="no weight of the model is projected to a grid"):
        StepLimit(dense(), 0.1)
    with pytest.raises(RequestError, match="a limit must be positive, got 0"):
        StepLimit(student(), 0.0)


# Oscillation


def test_frequencies_by_hand() -> None:
    """One weight holds the scale at 2 (levels -2, 0, 2), the second swings, the third goes on in one direction."""
    model, weight = row(2.0, 0.5, -1.5)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    watch = Oscillation(model, momentum=0.1)
    watch.attach(optimizer)
    swings, expected = [1.0, -1.0, 0.25, 0.75, -0.1, -0.9], 0.0
    for move, turned in zip(swings, (False, True, False, True, False, True), strict=True):
        #   0.5 -> 1.5 (up), 0.5 (down: turned), 0.75, 1.5 (up: turned), 1.4, 0.5 (down: turned)
        step(optimizer, weight, 0.0, move, 0.5)  # the third: -1, -0.5, 0, 0.5, 1, 1.5: up twice
        expected = 0.1 * turned + 0.9 * expected
    (frequency,) = (t for name, t in watch.state().items() if name.startswith("frequency"))
    assert frequency[0].tolist() == pytest.approx([0.0, expected, 0.0], rel=1e-6)
    assert watch.share() == pytest.approx(1 / 3)
    assert watch.share(often=0.5) == 0.0


def test_levels_are_compared_and_not_codes() -> None:
    """The codes of e2m1 are sign and magnitude: from -0.5 (9) up to 0.5 (1), and down again."""
    grid = {
        **THREE,
        "rules": {
            "targets": "Linear",
            "weights": {"kind": "quantize", "num_bits": 4, "type": "float", "strategy": "tensor"},
        },
    }
    model, weight = row(6.0, -0.5, spec=grid)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    watch = Oscillation(model, momentum=1.0)
    watch.attach(optimizer)
    turned = []
    for move in (1.0, 0.5, -1.5, 1.5):  # to 0.5, 1, -0.5, 1
        step(optimizer, weight, 0.0, move)
        turned.append(watch.share(often=0.9))
    assert turned == [0.0, 0.0, 0.5, 0.5]


def test_only_weights_with_a_code_for_every_number_are_watched() -> None:
    with pytest.raises(RequestError, match="so none can oscillate"):
        Oscillation(student("2of4-int4"))
    watched = {name.partition(":")[2] for name in Oscillation(student()).state()}
    assert watched == {name for name, _, _ in latent_parameters(student())} == {"0.weight", "2.weight"}
