"""Estimators that change what training sees, against their formulas written here, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhoc.runtime.capacity import gmse
from rhoc.runtime.estimators import Banded, BlockNoise, Estimator, Noise, Soft, Stochastic, StraightThrough
from rhoc.runtime.projection import Project
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Entropy, Hadamard, Quantize, Scale, Sparsify, Stage, Trellis

Array = NDArray[np.float64]

GRID = Quantize(3, strategy="channel", observer="rms", grid="midrise")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


def seen(x: Tensor, representation: Representation, *estimators: Estimator, seed: int = 0) -> Tensor:
    """What training sees of `x`."""
    torch.manual_seed(seed)
    return Project(representation, estimators)(x.clone().requires_grad_()).detach()


def gradient(x: Tensor, representation: Representation, *estimators: Estimator, upstream: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    Project(representation, estimators)(leaf).backward(upstream)
    assert leaf.grad is not None
    return leaf.grad


CHANGING = (Noise(), BlockNoise(), Stochastic())


@pytest.mark.parametrize("estimator", CHANGING, ids=lambda e: e.kind)
@pytest.mark.parametrize("before", [(), (Hadamard(8),), (Sparsify(sparsity_structure="2:4"),)], ids=str)
def test_what_is_random_passes_gradients_and_ends_in_eval(
    estimator: Estimator, before: tuple[Stage, ...]
) -> None:
    x, upstream = normal(8, 32), normal(8, 32, seed=1)
    r = chain(*before, GRID)
    assert torch.equal(gradient(x, r, estimator, upstream=upstream), upstream)
    module = Project(r, (estimator,))
    torch.manual_seed(0)
    first, second = (module(x.clone().requires_grad_()) for _ in range(2))
    assert not torch.equal(first, second), "drawn anew"
    assert not torch.equal(first, r.project(x))
    assert torch.equal(seen(x, r, estimator), first), "and the same under the same seed"
    assert torch.equal(module.eval()(x.clone().requires_grad_()), r.project(x))
    with torch.no_grad():
        state = torch.get_rng_state()
        assert torch.equal(module.train()(x), r.project(x)), "and without gradients"
        assert torch.equal(torch.get_rng_state(), state)


# Noise


@pytest.mark.parametrize("error", [0.01, 0.3])
@pytest.mark.parametrize("rotated", [False, True])
def test_noise_has_the_size_that_is_asked_for(error: float, rotated: bool) -> None:
    x = normal(16, 4096) * torch.logspace(-3, 3, 16, dtype=torch.float64)[:, None]
    r = chain(*([Hadamard(16)] if rotated else []), GRID)
    noise = (seen(x, r, Noise(gmse=error)) - x).numpy()
    size = np.sqrt(error * np.mean(x.numpy() ** 2, axis=1, keepdims=True))
    normalised = noise / size
    assert np.mean(normalised**2, axis=1) == pytest.approx(1, abs=5 * math.sqrt(2 / 4096))
    assert normalised.mean() == pytest.approx(0, abs=5 / 256)
    assert np.mean(normalised**4) == pytest.approx(3, abs=5 * math.sqrt(96) / 256), "it is normal"
    assert np.mean(normalised[:, 1:] * normalised[:, :-1]) == pytest.approx(0, abs=5 / 256)


@pytest.mark.parametrize(
    ("representation", "published"),
    [
        (chain(Quantize(2, strategy="channel", observer="rms", grid="midrise")), 0.11884605),
        (chain(Hadamard(16), Quantize(4, "float", strategy="channel", observer="rms")), 0.01268490),
        (chain(Sparsify(0.5)), 0.07132592),
    ],
    ids=str,
)
def test_noise_is_as_large_as_the_gaussian_error(representation: Representation, published: float) -> None:
    x = normal(64, 4096).sign() * 3  # which the projection itself may not touch at all
    noise = seen(x, representation, Noise()) - x
    ratio = float(noise.square().mean()) / 9
    assert ratio == pytest.approx(published, rel=5 * math.sqrt(2 / x.numel()))


def test_noise_without_quadrature_is_as_large_as_what_is_lost() -> None:
    x = normal(8, 8192) ** 3
    r = chain(Codebook(2, 1, 4, "gaussian"))
    assert gmse(r).method != "quadrature"
    lost = (r.project(x) - x).square().mean(1)
    noise = (seen(x, r, Noise()) - x).square().mean(1)
    assert lost.max() > 1.3 * lost.min(), "rows differ"
    torch.testing.assert_close(noise / lost, torch.ones(8).double(), rtol=0, atol=5 * math.sqrt(2 / 8192))


def test_no_noise_at_no_error() -> None:
    x = normal(4, 16)
    assert torch.equal(seen(x, chain(GRID), Noise(gmse=0.0)), x)
    assert torch.equal(seen(torch.zeros(4, 16), chain(GRID), Noise()), torch.zeros(4, 16))


# Block noise


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("block", [1, 3, 8])
def test_blocks_are_projected_or_left_alone(p: float, block: int) -> None:
    x = normal(200, 50)
    projected = seen(x, chain(GRID), BlockNoise(p, block)) != x
    hard = chain(GRID).project(x)
    assert torch.equal(torch.where(projected, hard, x), seen(x, chain(GRID), BlockNoise(p, block)))
    starts = projected[:, ::block]
    assert torch.equal(starts.repeat_interleave(block, 1)[:, :50], projected)
    share = starts.double().mean()
    assert float(share) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / starts.numel()))


def test_blocks_are_the_vectors_of_a_codebook() -> None:
    x = normal(100, 64)
    for r in (chain(Codebook(4, 1, 8, "gaussian")), chain(Entropy(chain(Codebook(4, 1, 8, "gaussian"))))):
        changed = (seen(x, r, BlockNoise(0.5)) != x).unflatten(1, (16, 4))
        assert torch.equal(changed.all(-1), changed.any(-1))
        assert 0.4 < changed.double().mean() < 0.6


def test_the_proxy_puts_zeros() -> None:
    x = normal(200, 50)
    result = seen(x, chain(GRID), BlockNoise(0.2, 5, zero=True))
    zero = result == 0
    assert torch.equal(zero[:, ::5].repeat_interleave(5, 1), zero)
    torch.testing.assert_close(result[~zero], x[~zero] / 0.8, rtol=1e-15, atol=0)
    share = float(zero[:, ::5].double().mean())
    assert share == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / 2000))


def train(estimators: tuple[Estimator, ...], representation: Representation | None = None) -> list[Tensor]:
    """The weight after each of five steps, straight through but for what the estimators do."""
    latent = normal(8, 16, seed=2).requires_grad_()
    project = Project(representation or chain(GRID), estimators)
    optimizer = torch.optim.SGD([latent], lr=0.05)
    torch.manual_seed(7)
    states = []
    for step in range(5):
        before = latent.detach().clone()
        loss = (normal(3, 16, seed=step) @ project(latent).mT).tanh().sum()
        assert torch.equal(latent, before), "a forward pass leaves the parameter alone"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        states.append(latent.detach().clone())
    return states


def test_block_noise_ends_in_plain_training_and_in_straight_through() -> None:
    plain, straight = train((), Representation()), train((StraightThrough(),))
    assert not torch.equal(plain[-1], straight[-1])
    for expected, p in ((plain, 0.0), (straight, 1.0)):
        for block in (None, 4):
            for one, other in zip(expected, train((BlockNoise(p, block),)), strict=True):
                assert torch.equal(one, other)
    assert not torch.equal(plain[-1], train((BlockNoise(0.5),))[-1])
    assert torch.equal(plain[-1], train((BlockNoise(0.0, zero=True),))[-1])


# Stochastic rounding


def test_stochastic_rounding_is_right_on_average() -> None:
    x = normal(4, 256).clamp(-1.5, 1.5)
    r = chain(Hadamard(8), Quantize(3, strategy="channel"))
    torch.manual_seed(0)
    module, leaf = Project(r, (Stochastic(),)), x.clone().requires_grad_()
    draws = torch.stack([module(leaf).detach() for _ in range(400)])
    rotated = chain(Hadamard(8)).encode(x).carry
    step = rotated.abs().amax(1, keepdim=True) / 3.5
    inside = (rotated / step).abs() < 3
    low = (rotated / step).floor() * step
    variance = torch.where(inside, (rotated - low) * (low + step - rotated), torch.zeros(()))
    off = chain(Hadamard(8)).encode(draws.mean(0)).carry - rotated
    spread = (variance / 400).sqrt()
    clipped = ~inside & (rotated / step > 3)
    assert clipped.any()
    assert (off[clipped] < 0).all(), "beyond the largest level there is one to choose"
    assert (off.abs()[inside] <= 5.5 * spread[inside] + 1e-6).all()
    assert not torch.equal(draws[0], draws[1])
    assert (off[inside].abs() > spread[inside]).double().mean() == pytest.approx(0.317, abs=0.1)


def test_scales_of_scales_are_rounded_as_ever() -> None:
    nested = Representation((Quantize(8, scale_dtype="float32"),))
    stage = Quantize(4, strategy="group", group_size=8, scales=nested)
    (trained,) = Stochastic().trained(chain(stage)).stages
    assert isinstance(trained, Quantize)
    assert trained.rounding == "stochastic"
    assert trained.scales == nested
    inner = Stochastic().trained(chain(GRID) + chain(Entropy(chain(GRID))))
    assert [stage.rounding for stage in inner.all_stages() if isinstance(stage, Quantize)] == [
        "stochastic"
    ] * 2


# Soft


SCALARS = {
    "midrise": Quantize(3, strategy="channel", observer="rms", grid="midrise"),
    "binary": Quantize(1, strategy="channel", observer="absmean"),
    "e2m1": Quantize(4, "float", strategy="channel"),
    "zero point": Quantize(2, symmetric=False, strategy="channel"),
    "signed": Quantize(3, strategy="channel", absmax_rule="signed"),
    "groups": Quantize(3, strategy="group", group_size=6, grid="midtread"),
}


def levels_of(stage: Quantize, x: Tensor) -> Tensor:
    """Levels as numbers `[rows, n, k]`, from what is stored."""
    fields = stage.encode(x)[1]
    steps = stage.steps(fields, tuple(x.shape))
    levels = torch.tensor(stage.levels.levels, dtype=torch.float64)
    if steps.zero is not None:
        levels = levels - steps.zero.double()[..., None]
    return (levels * steps.scale.double()[..., None]).expand(*x.shape, -1)


def reference(x: Tensor, levels: Tensor, temperature: float, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """S(x) and upstream * S'(x), the latter by automatic differentiation."""
    leaf = x.clone().requires_grad_()
    cell = levels.diff(dim=-1).abs().amax(-1)
    weights = (-(leaf[..., None] - levels).square() / (temperature * cell.square())[..., None]).softmax(-1)
    result = (weights * levels).sum(-1)
    result.backward(upstream)
    assert leaf.grad is not None
    return result.detach(), leaf.grad


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("temperature", [3.0, 0.3, 0.02])
def test_soft_levels_and_their_derivative(name: str, temperature: float) -> None:
    stage = SCALARS[name]
    x, upstream = normal(6, 21), normal(6, 21, seed=1)
    bound = Representation((stage,)).bound_stages[0]
    assert isinstance(bound, Quantize)
    levels = levels_of(bound, x)
    value, slope = reference(x, levels, temperature, upstream)
    estimator = Soft(temperature)
    torch.testing.assert_close(seen(x, chain(stage), estimator), value, rtol=1e-6, atol=1e-6)
    grad = gradient(x, chain(stage), estimator, upstream=upstream)
    torch.testing.assert_close(grad, slope, rtol=1e-5, atol=1e-6)
    mixed = gradient(x, chain(stage), Soft(temperature, floor=0.25), upstream=upstream)
    torch.testing.assert_close(mixed, 0.25 * upstream + 0.75 * slope, rtol=1e-5, atol=1e-6)


def test_soft_levels_of_a_table() -> None:
    x, upstream = normal(6, 20), normal(6, 20, seed=1)
    r = chain(Codebook(1, 1, 3, "gaussian", strategy="channel"))
    (stage,) = r.bound_stages
    assert isinstance(stage, Codebook)
    fields = stage.encode(x)[1]
    table = stage.tables(fields, x)[0].flatten().sort().values
    levels = table * fields["scale"][:, None, None].expand(6, 20, 1)
    value, slope = reference(x, levels, 0.2, upstream)
    torch.testing.assert_close(seen(x, r, Soft(0.2)), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient(x, r, Soft(0.2), upstream=upstream), slope, rtol=1e-5, atol=1e-6)


def test_soft_behind_a_rotation_scales_and_sparsity() -> None:
    x, upstream = normal(6, 32), normal(6, 32, seed=1)
    turn, sparse = chain(Hadamard(8)), Sparsify(sparsity_structure="2:4")
    r = chain(Hadamard(8), Scale(), sparse, GRID)
    rotated, back = turn.encode(x).carry, turn.encode(upstream).carry
    columns = rotated.square().mean(0).sqrt()
    scaled = rotated / columns
    kept = sparse.kept(sparse.encode(scaled)[1])
    bound = r.bound_stages[-1]
    assert isinstance(bound, Quantize)
    levels = levels_of(bound, scaled[kept].reshape(6, 16))
    value, slope = reference(scaled[kept].reshape(6, 16), levels, 0.3, back[kept].reshape(6, 16))
    expected = torch.zeros(6, 32, dtype=torch.float64)
    expected[kept] = value.ravel()
    torch.testing.assert_close(
        seen(x, r, Soft(0.3)), turn.encode(expected * columns).carry, rtol=1e-5, atol=1e-5
    )
    passed = back.clone()
    passed[kept] = slope.ravel()
    grad = gradient(x, r, Soft(0.3), upstream=upstream)
    torch.testing.assert_close(grad, turn.encode(passed).carry, rtol=1e-5, atol=1e-5)
    fixed = gradient(x, r, Soft(0.3), Banded(p=0.0), upstream=upstream)
    torch.testing.assert_close(fixed, turn.encode(passed * kept).carry, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SCALARS)
def test_cold_levels_are_the_projection(name: str) -> None:
    x, upstream = normal(8, 48), normal(8, 48, seed=1)
    r = chain(SCALARS[name])
    for cold in (Soft(1e-9), Soft(0.0, floor=0.5)):
        assert torch.equal(seen(x, r, cold), r.project(x))
    assert not gradient(x, r, Soft(1e-9), upstream=upstream).any()
    torch.testing.assert_close(gradient(x, r, Soft(0.0, floor=0.5), upstream=upstream), 0.5 * upstream)
    assert torch.equal(gradient(x, r, Soft(0.0, floor=1.0), upstream=upstream), upstream)


def test_the_mean_slope_over_a_cell_is_one() -> None:
    levels = tuple(k + 0.5 for k in range(-4, 4))
    stage = Codebook(1, 1, 3, "table", table=levels)
    x = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)[None]
    for temperature in (0.5, 0.1, 0.02):
        slope = gradient(x, chain(stage), Soft(temperature), upstream=torch.ones_like(x))[0]
        assert float((slope[1:] + slope[:-1]).sum() / 2 * 1e-3) == pytest.approx(3, abs=1e-3)
        if temperature < 0.1:  # two levels of equal weight: 2 Var / (temperature c^2) = 1 / (2 temperature)
            assert float(slope.max()) == pytest.approx(1 / (2 * temperature), rel=1e-4)


def test_far_numbers_stay_finite() -> None:
    x = torch.tensor([[1e30, -1e30, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).requires_grad_()
    projected = Project(chain(Codebook(1, 1, 1, "table", table=(-1.0, 1.0))), (Soft(1e-3),))(x)
    projected.sum().backward()
    assert projected[0, :2].tolist() == [1.0, -1.0]
    assert x.grad is not None
    assert x.grad.isfinite().all()
    zeros = torch.zeros(2, 4, requires_grad=True)
    result = Project(chain(Quantize(4, strategy="channel")), (Soft(),))(zeros)
    result.sum().backward()
    assert not result.any()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(16,), (0, 16), (2, 3, 16)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "estimator", [*CHANGING, Soft(), BlockNoise(0.3, 5, zero=True)], ids=lambda e: e.kind
)
def test_every_shape_and_dtype(estimator: Estimator, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for r in (chain(Hadamard(4), GRID), chain(Sparsify(0.5), Entropy(chain(GRID)))):
        x = normal(*shape).to(dtype).requires_grad_()
        result = Project(r, (estimator,))(x)
        result.sum().backward()
        assert x.grad is not None
        assert (result.shape, result.dtype) == (x.grad.shape, x.grad.dtype) == (shape, dtype)
        assert result.isfinite().all()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("estimator", "representation", "message"),
    [
        (Soft(), chain(Trellis(2, 8)), "'soft' needs a grid or a table of single numbers, and trellis"),
        (
            Soft(),
            chain(Codebook(2, 1, 4)),
            "'soft' needs one table of single numbers, and codebook.* has none",
        ),
        (
            Soft(),
            chain(Sparsify(0.5)),
            r"'soft' needs a grid or a table .*, and sparsify\(0.5\) has none; use 'ste'",
        ),
        (
            Soft(),
            chain(Sparsify(0.5, granularity="row"), Hadamard(4), GRID),
            "'soft' cannot see the levels of",
        ),
        (Soft(), chain(Entropy(chain(Hadamard(4), GRID))), "cannot see the rotation inside of entropy"),
        (
            Stochastic(),
            chain(Sparsify(0.5)),
            r"'stochastic' needs a grid to round to, and sparsify\(0.5\) has none",
        ),
        (
            Noise(),
            chain(Hadamard(4)),
            r"'noise' is as large as an error, and hadamard\(4\) makes none; give it",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    estimator: Estimator, representation: Representation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Project(representation, (estimator,))
    Project(Representation(), (estimator,))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Noise(-0.1), "gmse must be a number that is not negative, got -0.1"),
        (lambda: Noise(math.nan), "gmse must be a number that is not negative, got nan"),
        (lambda: BlockNoise(1.5), r"p must be in \[0, 1\], got 1.5"),
        (lambda: BlockNoise(1.0, zero=True), "p must be below 1 with zero"),
        (lambda: BlockNoise(0.5, 0), "block must be positive, got 0"),
        (lambda: Soft(-1.0), "temperature must be a number that is not negative, got -1"),
        (lambda: Soft(math.inf), "temperature must be a number that is not negative, got inf"),
        (lambda: Soft(0.5, 1.5), r"floor must be in \[0, 1\], got 1.5"),
        (lambda: Soft(0.0), "at temperature 0 no gradient passes; give a floor, or a small temperature"),
    ],
)
def test_options_out_of_range_are_refused(made: object, message: str) -> None:
    assert callable(made)
    with pytest.raises(ValueError, match=message):
        made()
