"""Learned step sizes: gradients against their formulas, first values, every form after training, messages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard
from torch import Tensor, nn

from rhoc.runtime.estimators import Estimator, LearnedScale, Lsq, LsqPlus, Pact
from rhoc.runtime.estimators.learned import Learned
from rhoc.runtime.learned import LearnedProject, first_steps, unknown_steps
from rhoc.runtime.projection import project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize
from rhoc.runtime.text_parser import from_text

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.float64]
GRIDS = {
    "twos": np.arange(-8, 8.0),
    "midrise": np.arange(-7.5, 8.0),
    "midtread": np.arange(-7, 8.0),
    "unsigned": np.arange(0, 16.0),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest(u: Array, levels: Array) -> Array:
    """The nearest level by comparison with all; even integers win ties, the upper one on half-odd levels."""
    distance = np.abs(u[..., None] - levels)
    tied = distance == distance.min(-1, keepdims=True)
    order = np.arange(len(levels)) if levels[0] % 1 else -np.abs(levels % 2)
    return np.asarray(levels[np.where(tied, order, -np.inf).argmax(-1)])


class Formula:
    """The published gradients of one tensor, in numpy: numbers that share a step stand in a row."""

    def __init__(self, x: Array, grad: Array, step: Array, levels: Array, offset: float = 0.0) -> None:
        self.grad, self.levels = grad, levels
        self.u = (x - offset) / step
        self.q = nearest(self.u, levels)
        self.inside = (self.u > levels[0]) & (self.u < levels[-1])
        self.projected = self.q * step + offset
        self.to_x = grad * self.inside

    def lsq(self, count: int) -> Array:
        """1902.08153, Eq. 3 and section 2.2."""
        slope = np.where(self.inside, self.q - self.u, np.where(self.u > 0, self.levels[-1], self.levels[0]))
        return np.asarray((self.grad * slope).sum(-1) / math.sqrt(count * self.levels[-1]))

    def offset(self, count: int) -> float:
        """2004.09576, Eq. 5."""
        return float((self.grad * ~self.inside).sum() / math.sqrt(count * self.levels[-1]))

    def pact(self) -> Array:
        """1805.06085, Eq. 3, on both sides of a symmetric grid."""
        return np.asarray((self.grad * ~self.inside * np.sign(self.u)).sum(-1))


def run(
    representation: Representation,
    estimator: Estimator,
    x: Tensor,
    step: Tensor,
    grad: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a projection gives, and the gradients of the numbers and of the steps."""
    leaf, parameter = x.clone().requires_grad_(), nn.Parameter(step.clone())
    result = LearnedProject(representation, (estimator,), **options)(leaf, parameter)
    result.backward(grad)
    assert leaf.grad is not None
    assert parameter.grad is not None
    return result.detach(), leaf.grad, parameter.grad


SHARING: list[tuple[dict[str, Any], int]] = [
    ({"strategy": "tensor"}, 240),
    ({"strategy": "channel"}, 40),
    ({"strategy": "group", "group_size": 8}, 8),
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("sharing", "count"), SHARING)
def test_gradients_of_lsq_are_its_formulas(sharing: dict[str, Any], count: int, grid: str) -> None:
    x, grad, levels = normal(6, 40), normal(6, 40, seed=1), GRIDS[grid]
    steps = 0.05 + 0.3 * torch.rand(240 // count, generator=torch.Generator().manual_seed(2)).double()
    stage = Quantize(4, observer="learned", grid=grid, **sharing)
    projected, to_x, to_step = run(Representation((stage,)), Lsq(), x, steps, grad)
    rows = (x.numpy().reshape(-1, count), grad.numpy().reshape(-1, count), steps.numpy()[:, None])
    expected = Formula(*rows, levels)
    assert 0 < expected.inside.mean() < 1
    np.testing.assert_allclose(projected.numpy(), expected.projected.reshape(6, 40), atol=1e-15)
    assert np.array_equal(to_x.numpy(), expected.to_x.reshape(6, 40))
    np.testing.assert_allclose(to_step.numpy(), expected.lsq(count), rtol=1e-12, atol=1e-14)
    plain = run(Representation((stage,)), Lsq(gradient_scale=False), x, steps, grad)[2]
    np.testing.assert_allclose(plain.numpy(), expected.lsq(count) * math.sqrt(count * levels[-1]), rtol=1e-12)


def test_large_tensors_are_worked_on_in_parts() -> None:
    for shape, sharing in (((3, 300_000), "tensor"), ((300, 2000), "channel"), ((2, 200_000), "channel")):
        x, grad = normal(*shape), normal(*shape, seed=1)
        rows = 1 if sharing == "tensor" else shape[0]
        steps = torch.linspace(0.1, 0.3, rows, dtype=torch.float64)
        stage = Quantize(2, observer="learned", strategy=sharing)
        _, to_x, to_step = run(Representation((stage,)), Lsq(), x, steps, grad)
        split = (x.numpy().reshape(rows, -1), grad.numpy().reshape(rows, -1), steps.numpy()[:, None])
        expected = Formula(*split, np.arange(-2, 2.0))
        assert np.array_equal(to_x.numpy(), expected.to_x.reshape(shape))
        np.testing.assert_allclose(to_step.numpy(), expected.lsq(x.numel() // rows), rtol=1e-9, atol=1e-9)


def test_groups_that_end_early_have_steps_of_their_own() -> None:
    x, grad, steps = normal(3, 10), normal(3, 10, seed=1), torch.arange(1.0, 10.0).double() / 20
    stage = Quantize(4, observer="learned", strategy="group", group_size=4)
    projected, to_x, to_step = run(Representation((stage,)), Lsq(), x, steps, grad)
    for number, (row, start) in enumerate((r, s) for r in range(3) for s in (0, 4, 8)):
        part = np.s_[row, start : start + 4]
        count = x[part].numel()
        expected = Formula(x[part].numpy(), grad[part].numpy(), steps[number].numpy(), GRIDS["twos"])
        np.testing.assert_allclose(projected[part], expected.projected, atol=1e-15)
        assert np.array_equal(to_x[part], expected.to_x)
        np.testing.assert_allclose(to_step[number], expected.lsq(count), rtol=1e-12)


def test_numbers_on_the_outermost_levels_count_as_outside() -> None:
    step = torch.tensor([0.25], dtype=torch.float64)
    just = float(np.nextafter(1.75, 0))
    x = torch.tensor([[-2.0, 1.75, just, 0.0, 0.125, 100.0, -100.0]], dtype=torch.float64)
    r = Representation((Quantize(4, observer="learned"),))
    slopes = [-8.0, 7.0, 7 - just / 0.25, 0.0, -0.5, 7.0, -8.0]
    for place, slope in enumerate(slopes):
        grad = torch.zeros(1, 7, dtype=torch.float64)
        grad[0, place] = 1.0
        _, to_x, to_step = run(r, Lsq(gradient_scale=False), x, step, grad)
        assert float(to_step) == pytest.approx(slope, abs=1e-12)
        assert float(to_x[0, place]) == float(place in (2, 3, 4))
        assert int(to_x.count_nonzero()) <= 1


@pytest.mark.parametrize("keep_rotated", [False, True])
def test_gradients_are_taken_in_the_rotated_domain(keep_rotated: bool) -> None:
    x, grad, matrix = normal(6, 16), normal(6, 16, seed=1), hadamard(16) / 4.0
    steps = torch.full((6,), 0.15, dtype=torch.float64)
    r = Representation((Hadamard(16), Quantize(4, observer="learned", strategy="channel")))
    projected, to_x, to_step = run(r, Lsq(), x, steps, grad, keep_rotated=keep_rotated)
    upstream = grad.numpy() if keep_rotated else grad.numpy() @ matrix
    expected = Formula(x.numpy() @ matrix, upstream, steps.numpy()[:, None], GRIDS["twos"])
    assert 0 < expected.inside.mean() < 1
    back = expected.projected if keep_rotated else expected.projected @ matrix
    np.testing.assert_allclose(projected.numpy(), back, atol=1e-14)
    np.testing.assert_allclose(to_x.numpy(), expected.to_x @ matrix, atol=1e-14)
    np.testing.assert_allclose(to_step.numpy(), expected.lsq(16), rtol=1e-11)


def test_the_offset_of_lsq_plus_has_the_gradient_of_its_formula() -> None:
    x, grad = normal(6, 40) + 0.8, normal(6, 40, seed=1)
    leaf, step = x.clone().requires_grad_(), nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
    offset = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    module = LearnedProject(Representation((Quantize(4),)), (LsqPlus(),), starts=True)
    result = module(leaf, step, offset)
    result.backward(grad)
    expected = Formula(
        x.numpy().reshape(1, -1), grad.numpy().reshape(1, -1), np.array(0.1), GRIDS["twos"], 0.7
    )
    assert 0 < expected.inside.mean() < 1
    assert leaf.grad is not None
    assert step.grad is not None
    assert offset.grad is not None
    np.testing.assert_allclose(result.detach().numpy(), expected.projected.reshape(6, 40), atol=1e-14)
    assert np.array_equal(leaf.grad.numpy(), expected.to_x.reshape(6, 40))
    assert float(step.grad) == pytest.approx(float(expected.lsq(40)[0]), rel=1e-12)  # 40 features
    assert float(offset.grad) == pytest.approx(expected.offset(40), rel=1e-12)


@pytest.mark.parametrize("grid", ["midtread", "midrise"])
def test_only_clipped_numbers_move_the_end_of_pact(grid: str) -> None:
    x, grad, top = normal(6, 40), normal(6, 40, seed=1), GRIDS[grid][-1]
    r = Representation((Quantize(4, grid=grid),))
    projected, to_x, to_end = run(r, Pact(), x, torch.tensor([1.2], dtype=torch.float64), grad)
    expected = Formula(
        x.numpy().reshape(1, -1), grad.numpy().reshape(1, -1), np.array(1.2 / top), GRIDS[grid]
    )
    np.testing.assert_allclose(projected.numpy(), expected.projected.reshape(6, 40), atol=1e-15)
    assert np.array_equal(to_x.numpy(), expected.to_x.reshape(6, 40))
    assert float(to_end) == pytest.approx(float(expected.pact()[0]), rel=1e-12)
    inside = run(r, Pact(), x * 0.2, torch.tensor([1.2], dtype=torch.float64), grad)
    assert torch.equal(inside[1], grad)
    assert float(inside[2]) == 0


def test_the_sign_of_a_step_makes_no_difference_but_to_its_gradient() -> None:
    x, grad, step = normal(6, 40), normal(6, 40, seed=1), torch.tensor([0.2], dtype=torch.float64)
    r = Representation((Quantize(4, observer="learned"),))
    plus, minus = run(r, Lsq(), x, step, grad), run(r, Lsq(), x, -step, grad)
    assert torch.equal(plus[0], minus[0])
    assert torch.equal(plus[1], minus[1])
    assert torch.equal(plus[2], -minus[2])
    assert all(torch.isfinite(found).all() for found in run(r, Lsq(), x, step * 0, grad))
    assert all(torch.isfinite(f).all() for f in run(r, Lsq(), x.float(), step.float() * 0, grad.float()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_steps_are_rounded_as_they_are_stored(dtype: Any) -> None:
    x, step = normal(4, 32).float(), torch.tensor([0.123456789])
    stage = Quantize(4, observer="learned", scale_dtype=dtype)
    projected = run(Representation((stage,)), Lsq(), x, step, x)[0]
    stored = float(step.to(getattr(torch, dtype)))
    assert stored != float(step)
    assert torch.equal(projected, (x / stored).round().clamp(-8, 7) * torch.tensor(stored))


def test_without_a_parameter_the_mask_is_left() -> None:
    x, grad = normal(6, 16), normal(6, 16, seed=1)
    r = Representation((Hadamard(16), Quantize(3, observer="learned", strategy="channel")))
    leaf = x.clone().requires_grad_()
    project_with_gradient(leaf, r, (Lsq(),)).backward(grad)
    steps = first_steps(r, Lsq(), x).detach()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, run(r, Lsq(), x, steps, grad)[1], rtol=0, atol=1e-14)


# Where steps start.


def test_lsq_starts_at_twice_the_mean_magnitude_over_the_root_of_the_highest_level() -> None:
    w = normal(5, 64)
    r = Representation((Quantize(4, observer="learned", strategy="channel"),))
    expected = 2 * w.abs().mean(-1) / math.sqrt(7)
    torch.testing.assert_close(first_steps(r, Lsq(), w).detach(), expected, rtol=1e-14, atol=0)


def test_lsq_plus_starts_weights_at_three_deviations_and_inputs_at_the_least_error() -> None:
    w = normal(5, 64) + torch.arange(-2.0, 3.0)[:, None]
    r = Representation((Quantize(3, observer="three_sigma", strategy="channel"),))
    mean, deviation = w.mean(-1), w.var(-1, correction=0).sqrt()
    expected = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs()) / 4
    torch.testing.assert_close(first_steps(r, LsqPlus(), w).detach(), expected, rtol=1e-13, atol=0)

    x = normal(64, 16).exp() - 0.5
    module = LearnedProject(Representation((Quantize(4),)), (LsqPlus(),), starts=True)
    step, offset = unknown_steps(x), unknown_steps(x)
    error = float((module(x, step, offset) - x).square().mean().detach())
    low, high = float(x.min()), float(x.max())
    whole = (high - low) / 15
    minmax = float((((x - low) / whole).round() * whole + low - x).square().mean())
    best = min(
        float((((x - at) / s).round().clamp(0, 15) * s + at - x).square().mean())
        for s in np.linspace(whole * 0.2, whole, 80)
        for at in np.linspace(low - s, low + 2 * s, 13)
    )
    assert best <= error * (1 + 1e-9)
    assert error < minmax
    assert error < 1.25 * best


@pytest.mark.parametrize("estimator", [Lsq(), Pact()])
def test_steps_of_inputs_start_at_the_first_tensor_of_training(estimator: Learned) -> None:
    r = Representation((Quantize(2, observer="learned"),))
    module, step = LearnedProject(r, (estimator,), starts=True), unknown_steps(nn.Parameter(normal(1)))
    first, second = normal(8, 16), normal(8, 16, seed=1) * 3
    module.eval()
    for x in (first, second):  # until then each is measured, with a gradient that is that of its step
        leaf = x.clone().requires_grad_()
        assert torch.equal(module(leaf, step), r.project(x))
        module(leaf, step).sum().backward()
        assert leaf.grad is not None
        assert 0 < float(leaf.grad.mean()) < 1
    assert step.isnan().all()
    assert step.grad is not None
    assert float(step.grad) == 0
    module.train()
    torch.testing.assert_close(module(first, step), r.project(first), rtol=1e-15, atol=0)
    known = step.detach().clone()
    expected = 2 * first.abs().mean()  # the highest level is 1
    torch.testing.assert_close(known, expected[None], rtol=1e-14, atol=0)
    module(second, step)
    module.eval()(second, step)
    assert torch.equal(step.detach(), known)
    assert not torch.equal(module(second, step), r.project(second))


def test_an_empty_batch_starts_nothing() -> None:
    module = LearnedProject(Representation((Quantize(4, observer="learned"),)), (Lsq(),), starts=True)
    step = unknown_steps(nn.Parameter(normal(1)))
    assert module(normal(0, 8), step).shape == (0, 8)
    assert step.isnan().all()
    module(normal(2, 8), step)
    assert not step.isnan().any()
    assert module(normal(0, 8).requires_grad_(), step).shape == (0, 8)


def test_the_step_of_lsq_converges_to_the_one_of_least_error() -> None:
    x = normal(1, 4096)
    r = Representation((Quantize(3, observer="absmax"),))
    step = first_steps(r, Lsq(), x)
    optimizer = torch.optim.SGD([step], lr=0.5)
    module = LearnedProject(r, (Lsq(gradient_scale=False),))
    start = float((module(x, step) - x).square().mean().detach())
    for _ in range(60):
        optimizer.zero_grad()
        (module(x, step) - x).square().mean().backward()
        optimizer.step()

    def error(s: float) -> float:
        return float(((x / s).round().clamp(-4, 3) * s - x).square().mean())

    best = min(np.linspace(0.2, 1.5, 1301), key=error)
    assert step.item() == pytest.approx(best, rel=0.03)
    assert error(step.item()) < 1.005 * error(best) < start


# A step that is given.


def test_a_given_step_measures_nothing() -> None:
    x = normal(5, 12)
    for stage in (Quantize(4, step=0.3), Quantize(4, "float", step=0.3), Quantize(4, step=0.3, offset=0.7)):
        r, b = Representation((stage,)), stage.offset or 0.0
        levels = np.array(stage.levels.levels)
        expected = nearest((x.numpy() - b) / 0.3, levels) * 0.3 + b if stage.type == "int" else None
        code = r.encode(x)
        assert torch.equal(r.decode(code), r.project(x))
        assert torch.equal(r.decode(code), r.view(x).projected)
        assert float(code.fields[0]["scale"]) == 0.3
        assert torch.equal(r.project(x[:2]), r.project(x)[:2])
        assert from_text(str(r)) == r
        assert not r.scale_free
        if expected is not None:
            np.testing.assert_allclose(r.project(x).numpy(), expected, atol=1e-14)
    view = Representation((Quantize(4, step=0.3, offset=0.7),)).view(x)
    assert view.cell is not None
    assert float(view.cell.outermost) == pytest.approx(7 * 0.3 + 0.7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step must be a positive number, got 0.0"),
        ({"step": math.inf}, "step must be a positive number"),
        ({"step": 0.1, "strategy": "channel"}, "it needs strategy: tensor"),
        ({"step": 0.1, "scale_dtype": "e8m0"}, "no scale_dtype but"),
        ({"step": 0.1, "symmetric": False}, "symmetric: true"),
        ({"offset": 0.1}, "give both"),
    ],
)
def test_given_steps_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(4, **options)


@pytest.mark.parametrize("grid", ["midrise", "midtread"])
def test_learned_scales_take_codes_as_given(grid: str) -> None:
    x, grad, levels = normal(6, 40), normal(6, 40, seed=1), GRIDS[grid]
    steps = torch.linspace(0.05, 0.3, 6, dtype=torch.float64)
    stage = Quantize(4, observer="learned", strategy="channel", grid=grid)
    projected, to_x, to_step = run(Representation((stage,)), LearnedScale(), x, steps, grad)
    expected = Formula(x.numpy(), grad.numpy(), steps.numpy()[:, None], levels)
    np.testing.assert_allclose(projected.numpy(), expected.projected, atol=1e-15)
    assert torch.equal(to_x, grad)
    slope = (expected.grad * expected.q).sum(-1) / math.sqrt(40 * levels[-1])
    np.testing.assert_allclose(to_step.numpy(), slope, rtol=1e-12)


def test_the_sign_of_zero_is_plus() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-30, -1e-30]], dtype=torch.float64)
    stage = Quantize(1, strategy="channel", observer="mse")
    steps = torch.tensor([2.0], dtype=torch.float64)
    projected, to_x, _ = run(Representation((stage,)), LearnedScale(), x, steps, torch.ones_like(x))
    assert projected.tolist() == [[1.0, 1.0, 1.0, -1.0]]
    assert bool((to_x == 1).all())
