"""Masks and gradients of estimators against the papers' formulas, written here in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard
from scipy.stats import norm
from torch import Tensor

from rhoc.runtime.estimators import Banded, Estimator, StraightThrough, Trust
from rhoc.runtime.projection import Project, project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify, Stage

Array = NDArray[np.float64]

# Bits: the optimal clip in units of the rms, the one in QuEST's code, and the fraction 2 sf(alpha + T) that
# the latter masks.
ALPHA = {
    1: (0.797884561, 0.7978845587, 0.11054),
    2: (1.493530029, 1.4935346200, 0.04644),
    3: (2.051068075, 2.0510683541, 0.01907),
    4: (2.514004471, 2.5139305786, 0.00733),
    5: (2.916151219, 2.9160938835, 0.00261),
    6: (3.277984797, 3.2765972826, 8.728e-4),
    7: (3.611097126, 3.6010497188, 2.841e-4),
    8: (3.922204766, 3.8849386788, 9.612e-5),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(num_bits: int, *before: Stage) -> Representation:
    return Representation((*before, Quantize(num_bits, strategy="channel", observer="rms", grid="midrise")))


def rotation(size: int, block: int) -> Array:
    return np.asarray(np.kron(np.eye(size // block), hadamard(block) / math.sqrt(block)))


def quest(x: Array, num_bits: int) -> Array:
    """QuEST's forward pass in its own words (2502.05003, section 3.1)."""
    scale = ALPHA[num_bits][0] * np.sqrt(np.mean(x**2, axis=-1, keepdims=True)) + 1e-8
    step = 2 * scale / (2**num_bits - 1)
    return np.asarray(np.round(np.clip(x, -scale, scale) / step + 0.5) * step - step / 2)


def quest_mask(x: Array, num_bits: int, outer: float) -> Array:
    """QuEST's trust mask, with its outer bound for one bit."""
    spread = np.sqrt(np.mean(x**2, axis=-1, keepdims=True))
    if num_bits == 1:
        return np.asarray(np.abs(x) <= outer * ALPHA[1][0] * spread)
    return np.asarray(np.abs(quest(x, num_bits) - x) <= spread * ALPHA[num_bits][0] / (2**num_bits - 1))


def gradient(
    x: Tensor, representation: Representation, estimators: tuple[Estimator, ...], upstream: Tensor
) -> tuple[Array, Array]:
    """The projection and dL/dx for dL/dR(x) = upstream."""
    leaf = x.clone().requires_grad_()
    projected = project_with_gradient(leaf, representation, estimators)
    projected.backward(upstream)
    assert leaf.grad is not None
    assert leaf.grad.shape == x.shape
    assert leaf.grad.dtype == x.dtype
    return projected.detach().numpy(), leaf.grad.numpy()


def mask_of(x: Tensor, representation: Representation, estimator: Estimator) -> Array:
    mask = estimator.mask(representation.view(x))
    assert mask is not None
    assert mask.shape == x.shape
    assert ((mask == 0) | (mask == 1)).all()  # bool, or zeros and ones of a float dtype
    return mask.bool().numpy()


# Trust


@pytest.mark.parametrize("num_bits", ALPHA)
@pytest.mark.parametrize("block", [None, 16])
def test_quest_forward_and_backward(num_bits: int, block: int | None) -> None:
    x, upstream = normal(24, 64), normal(24, 64, seed=1)
    matrix = rotation(64, block) if block else np.eye(64)
    representation = uniform(num_bits, *([Hadamard(block)] if block else []))
    projected, grad = gradient(x, representation, (Trust(),), upstream)
    rotated = x.numpy() @ matrix
    np.testing.assert_allclose(projected, quest(rotated, num_bits) @ matrix, rtol=0, atol=1e-6)
    mask = quest_mask(rotated, num_bits, 1.30 if block else 1.25)
    assert 0 < mask.mean() < 1 or num_bits > 5
    np.testing.assert_allclose(grad, (mask * (upstream.numpy() @ matrix)) @ matrix, rtol=0, atol=1e-12)


def test_quest_forward_in_float32() -> None:
    x = normal(32, 256).float()
    for num_bits in ALPHA:
        projected = uniform(num_bits, Hadamard(128)).project(x)
        matrix = rotation(256, 128)
        expected = quest(x.double().numpy() @ matrix, num_bits) @ matrix
        off = np.abs(projected.numpy() - expected)
        # Rounding may tip a number on a cell's border; its whole block of 128 then moves a little.
        assert np.mean(off > 1e-5) <= 3 / 64


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_masked_fraction_on_normal_data(num_bits: int) -> None:
    exact, quests, published = ALPHA[num_bits]
    x = normal(128, 8192, seed=num_bits)
    for clip in (None, quests):
        alpha = clip or exact
        expected = 2 * norm.sf(alpha + alpha / (2**num_bits - 1))
        assert clip is None or expected == pytest.approx(published, rel=1e-3)
        stage = Quantize(num_bits, strategy="channel", observer="rms", grid="midrise", clip=clip)
        masked = 1 - mask_of(x, Representation((stage,)), Trust()).mean()
        assert masked == pytest.approx(expected, abs=4 * math.sqrt(expected / x.numel()))


@pytest.mark.parametrize(("block", "outer"), [(None, 1.25), (64, 1.30)])
def test_masked_fraction_of_one_bit(block: int | None, outer: float) -> None:
    assert 2 * norm.sf(2 * ALPHA[1][0]) == pytest.approx(ALPHA[1][2], rel=1e-3), "without its own bound"
    expected = 2 * norm.sf(outer * ALPHA[1][0])
    x = normal(64, 8192)
    masked = 1 - mask_of(x, uniform(1, *([Hadamard(block)] if block else [])), Trust()).mean()
    assert masked == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / x.numel()))


def test_trust_on_fp4_takes_the_widest_half_interval() -> None:
    x = normal(16, 512)
    r = Representation((Quantize(4, "float", strategy="channel", observer="rms"),))
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    grid = np.concatenate([-values[:0:-1], values]) * 2.922475 / 6
    spread = np.sqrt(np.mean(x.numpy() ** 2, axis=-1, keepdims=True))
    scaled = x.numpy() / spread
    nearest = grid[np.abs(scaled[..., None] - grid).argmin(-1)]
    np.testing.assert_allclose(r.project(x).numpy(), nearest * spread, rtol=1e-6)
    expected = np.abs(nearest - scaled) <= 2.922475 / 6
    assert 0 < expected.mean() < 1
    assert np.array_equal(mask_of(x, r, Trust()), expected)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_the_factor_scales_the_bound(factor: float) -> None:
    x = normal(8, 256)
    spread = np.sqrt(np.mean(x.numpy() ** 2, axis=-1, keepdims=True))
    half_cell = spread * ALPHA[2][0] / 3
    expected = np.abs(quest(x.numpy(), 2) - x.numpy()) <= factor * half_cell
    assert np.array_equal(mask_of(x, uniform(2), Trust(factor)), expected)
    expected = np.abs(x.numpy()) <= factor * 1.25 * ALPHA[1][0] * spread
    assert np.array_equal(mask_of(x, uniform(1), Trust(factor)), expected)


def test_trust_compares_before_rounding_to_the_dtype() -> None:
    # bfloat16 has 8 bits of precision, as many as the grid: rounding first would mask at random.
    x = normal(64, 512).bfloat16()
    r = uniform(8)
    step = r.encode(x).fields[0]["scale"].float().numpy()[:, None]
    latent = x.float().numpy()
    nearest = np.clip(np.floor(latent / step) + 0.5, -127.5, 127.5) * step
    mask = mask_of(x, r, Trust())
    assert mask.mean() > 1 - 5e-4
    assert np.mean(mask != (np.abs(nearest - latent) <= step / 2)) < 1e-4


@pytest.mark.parametrize(("structure", "vector"), [("2:4", 1), ("1:4", 1), ("4:8", 2)])
def test_a_pruned_number_is_trusted_near_zero(structure: str, vector: int) -> None:
    # Pairs of 4:8 are QuEST's 2:4 with INT4: the two pairs of larger norm stay.
    kept, group = (int(count) // vector for count in structure.split(":"))
    x = normal(8, 128)
    r = uniform(4, Sparsify(sparsity_structure=structure, vector=vector))
    groups = np.linalg.norm(x.numpy().reshape(8, -1, group, vector), axis=-1)
    survives = np.argsort(np.argsort(-groups, axis=-1), axis=-1) < kept
    survives = np.repeat(survives.reshape(8, 128 // vector), vector, axis=1)
    scale = r.encode(x).fields[1]["scale"].numpy()[:, None]  # the distance between levels
    projected = np.where(survives, np.clip(np.floor(x.numpy() / scale) + 0.5, -7.5, 7.5) * scale, 0)
    np.testing.assert_allclose(r.project(x).numpy(), projected, rtol=1e-12)
    expected = np.abs(projected - x.numpy()) <= scale / 2
    assert 0 < expected[~survives].mean() < 1
    assert np.array_equal(mask_of(x, r, Trust()), expected)


def test_a_row_without_survivors_still_learns() -> None:
    x = normal(4, 64)
    x[2] *= 1e-3
    r = Representation((Sparsify(0.5), Quantize(4, strategy="channel", observer="rms", grid="midrise")))
    view = r.view(x)
    assert view.kept is not None
    assert not view.kept[2].any()
    assert mask_of(x, r, Trust())[2].all()


# Banded


def band(x: Array, sparsity: float, low: float, high: float) -> Array:
    """Gradient passes below `low` and above `high`; the numbers that survive top-k pruning are above."""
    magnitude = np.abs(x)
    threshold = np.sort(magnitude.ravel())[round(sparsity * x.size) - 1]  # the largest that is pruned
    low, high = (threshold if np.isnan(v) else v for v in (low, high))
    return np.asarray((magnitude < low) | (magnitude > high))


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.2, 0.25, 0.45])
@pytest.mark.parametrize("block", [None, 8])
def test_root_mean_square_band(sparsity: float, p: float, block: int | None) -> None:
    x, upstream = normal(60, 80), normal(60, 80, seed=1)
    matrix = rotation(80, block) if block else np.eye(80)
    representation = Representation((*([Hadamard(block)] if block else []), Sparsify(sparsity)))
    latent = x.numpy() @ matrix
    border = math.sqrt(np.mean(latent**2)) * norm.ppf(0.5 + p)
    threshold = np.sort(np.abs(latent).ravel())[round(sparsity * latent.size) - 1]
    passes = band(latent, sparsity, min(border, threshold), max(border, threshold))
    on_threshold = np.isclose(np.abs(latent), threshold, rtol=1e-12, atol=0)
    mask = mask_of(x, representation, Banded(p=p))
    assert np.array_equal(mask | on_threshold, passes | on_threshold)
    assert on_threshold.sum() == 1
    projected, grad = gradient(x, representation, (Banded(p=p),), upstream)
    survivors = np.where(np.abs(latent) > threshold * (1 + 1e-12), latent, 0)
    np.testing.assert_allclose(projected, survivors @ matrix, rtol=0, atol=1e-12)
    np.testing.assert_allclose(grad, (mask * (upstream.numpy() @ matrix)) @ matrix, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sparsity", "p", "published"),
    [
        (0.5, 0.1, 0.7),
        (0.75, 0.2, 0.65),
        (0.9, 0.25, 0.6),
        (0.5, 0.4, None),
        (0.25, 0.2, None),
        (0.6, 0.3, None),
    ],
)
def test_fraction_that_gets_gradient(sparsity: float, p: float, published: float | None) -> None:
    expected = min(2 * p, sparsity) + 1 - max(2 * p, sparsity)
    assert published is None or expected == pytest.approx(published)
    mask = mask_of(normal(1000, 1000), Representation((Sparsify(sparsity),)), Banded(p=p))
    assert mask.mean() == pytest.approx(expected, abs=4e-3)


@pytest.mark.parametrize("sparsity", [0.25, 0.75])
def test_no_band_width_is_the_fixed_mask(sparsity: float) -> None:
    x, upstream = normal(40, 50), normal(40, 50, seed=1)
    for stage in (Sparsify(sparsity), Sparsify(sparsity_structure="2:5")):
        r = Representation((stage,))
        fixed = (r.project(x) != 0).numpy()
        for estimator in (Banded(p=0.0), Banded(area=1.0)):
            assert np.array_equal(mask_of(x, r, estimator), fixed)
            _, grad = gradient(x, r, (estimator,), upstream)
            assert np.array_equal(grad, upstream.numpy() * fixed)


def test_area_zero_is_straight_through() -> None:
    x, upstream = normal(40, 50), normal(40, 50, seed=1)
    for ties in (x, x.round(), torch.ones(40, 50, dtype=torch.float64)):
        r = Representation((Sparsify(0.5),))
        assert np.array_equal(gradient(ties, r, (Banded(area=0.0),), upstream)[1], upstream.numpy())


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("area", [0.1, 0.5, 0.9, 1e-9])
def test_area_band(sparsity: float, area: float) -> None:
    x = normal(60, 80)
    rms = math.sqrt(np.mean(x.numpy() ** 2))
    threshold = np.sort(np.abs(x.numpy()).ravel())[round(sparsity * x.numel()) - 1]
    inner = rms * norm.ppf(0.5 + (1 - area) * (norm.cdf(threshold / rms) - 0.5))
    expected = band(x.numpy(), sparsity, inner, threshold)
    mask = mask_of(x, Representation((Sparsify(sparsity),)), Banded(area=area))
    differ = mask != expected
    assert not differ[np.abs(np.abs(x.numpy()) - inner) > 1e-6].any()


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("area", [0.25, 0.5, 1.0])
def test_fraction_that_the_area_band_blocks(sparsity: float, area: float) -> None:
    # Of the share s below the threshold, the part a next to it: T_a leaves (1 - a) s below.
    mask = mask_of(normal(1000, 1000), Representation((Sparsify(sparsity),)), Banded(area=area))
    assert 1 - mask.mean() == pytest.approx(area * sparsity, abs=4e-3)


def test_worked_example_of_the_area_band() -> None:
    # cdf(T_k) = 0.8, which is sparsity 0.6, and a = 0.5: T_k = 0.84162 and T_a = ppf(0.65) = 0.38532.
    x = normal(1000, 1000)
    magnitude = np.abs(x.numpy())
    mask = mask_of(x, Representation((Sparsify(0.6),)), Banded(area=0.5))
    blocked = magnitude[~mask]
    assert blocked.max() == pytest.approx(0.84162, abs=4e-3)
    assert blocked.min() == pytest.approx(norm.ppf(0.65), abs=4e-3)
    assert norm.ppf(0.65) == pytest.approx(0.38532, abs=5e-6)
    assert mask.mean() == pytest.approx(1 - 0.3, abs=2e-3), "half of the area inside T_k is blocked"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_bands_are_computed_above_the_tensors_precision(dtype: torch.dtype) -> None:
    x = (normal(40, 64) * 300).to(dtype)  # squares overflow float16
    r = Representation((Sparsify(0.5),))
    for estimator in (Banded(p=0.1), Banded(area=0.5)):
        exact = mask_of(x.double(), r, estimator)
        assert np.mean(mask_of(x, r, estimator) != exact) <= (0.0005 if dtype == torch.float32 else 0.01)
        assert 0.5 < exact.mean() < 0.9


# All of them


def test_straight_through_passes_everything() -> None:
    x, upstream = normal(6, 32), normal(6, 32, seed=1)
    for r in (uniform(1), uniform(4, Hadamard(8)), Representation((Sparsify(0.75),))):
        projected, grad = gradient(x, r, (StraightThrough(),), upstream)
        assert np.array_equal(grad, upstream.numpy())
        assert np.array_equal(projected, r.project(x).numpy())


def test_masks_of_several_estimators_multiply() -> None:
    x, upstream = normal(16, 64), normal(16, 64, seed=1)
    r = uniform(2, Hadamard(16), Sparsify(sparsity_structure="2:4"))
    both = (StraightThrough(), Trust(), Banded(p=0.1))
    trust, banded = mask_of(x, r, Trust()), mask_of(x, r, Banded(p=0.1))
    assert (trust & ~banded).any()
    assert (banded & ~trust).any()
    matrix = rotation(64, 16)
    _, grad = gradient(x, r, both, upstream)
    np.testing.assert_allclose(
        grad, (trust * banded * (upstream.numpy() @ matrix)) @ matrix, rtol=0, atol=1e-12
    )
    assert np.array_equal(grad, gradient(x, r, both[::-1], upstream)[1])


REPRESENTATIONS = [
    uniform(1),
    uniform(4, Hadamard(8)),
    uniform(3, Hadamard(8), Sparsify(0.5)),
    uniform(4, Sparsify(sparsity_structure="2:4")),
    Representation(
        (Sparsify(sparsity_structure="4:8"), Quantize(4, "float", strategy="group", group_size=4))
    ),
    Representation((Hadamard(4), Quantize(8, strategy="tensor", observer="mse"))),
]


def assert_projected(found: Tensor, expected: Tensor) -> None:
    """Equal bit for bit in float64; where a fused kernel may have been at work, up to the order of sums."""
    if found.dtype == torch.float64:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("representation", REPRESENTATIONS, ids=str)
@pytest.mark.parametrize("shape", [(16,), (1, 16), (5, 16), (2, 3, 16), (0, 16)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_shape_and_dtype(
    representation: Representation, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    sparse = any(isinstance(stage, Sparsify) for stage in representation.stages)
    estimators = (Trust(), Banded(p=0.2)) if sparse else (Trust(),)
    backing = normal(*shape).to(dtype)
    for x in (backing, normal(*shape[::-1]).to(dtype).permute(*reversed(range(len(shape))))):
        leaf = x.clone().requires_grad_()
        projected = project_with_gradient(leaf, representation, estimators)
        assert_projected(projected, representation.project(x))
        projected.backward(torch.ones_like(projected))
        assert leaf.grad is not None
        assert leaf.grad.shape == shape
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("representation", REPRESENTATIONS, ids=str)
def test_the_backward_pass_is_linear_and_symmetric(representation: Representation) -> None:
    # dL/dx = H (M * H g) is a symmetric matrix times g, and a projector: twice is once.
    x = normal(3, 16)
    columns = [
        gradient(x, representation, (Trust(),), unit.reshape(3, 16))[1].ravel()
        for unit in torch.eye(48).double()
    ]
    matrix = np.stack(columns)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-13)
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-13)
    kept = mask_of(x, representation, Trust()).sum()
    assert np.trace(matrix) == pytest.approx(kept)


def test_a_result_can_stay_rotated() -> None:
    x, upstream = normal(6, 32), normal(6, 32, seed=1)
    r, matrix = uniform(3, Hadamard(16)), rotation(32, 16)
    leaf = x.clone().requires_grad_()
    rotated = project_with_gradient(leaf, r, (Trust(),), keep_rotated=True)
    rotated.backward(upstream)
    np.testing.assert_allclose(rotated.detach().numpy(), quest(x.numpy() @ matrix, 3), atol=2e-7)
    mask = quest_mask(x.numpy() @ matrix, 3, 1.30)
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), (mask * upstream.numpy()) @ matrix, atol=1e-12)


def test_no_gradient_is_asked_for_no_mask() -> None:
    class Forbidden(StraightThrough):
        masks = True

        def mask(self, view: object) -> Tensor | None:
            raise AssertionError("a mask was computed")

    x, r = normal(4, 8), uniform(2)
    assert torch.equal(project_with_gradient(x, r, (Forbidden(),)), r.project(x))
    with torch.no_grad():
        assert torch.equal(project_with_gradient(x.clone().requires_grad_(), r, (Forbidden(),)), r.project(x))
    with pytest.raises(AssertionError, match="a mask was computed"):
        project_with_gradient(x.clone().requires_grad_(), r, (Forbidden(),))


def test_module_holds_nothing_to_save() -> None:
    module = Project(uniform(4, Hadamard(16)), (Trust(),))
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    x = normal(4, 16)
    assert torch.equal(module(x), uniform(4, Hadamard(16)).project(x))
    assert "hadamard(16) >> quantize(int4, midrise, channel, rms), trust" in repr(module)


@pytest.mark.parametrize(
    ("estimator", "representation", "message"),
    [
        (
            Trust(),
            Representation((Sparsify(0.5),)),
            r"'trust' needs a grid, and sparsify\(0.5\) has none; use 'ste'",
        ),
        (
            Banded(p=0.1),
            uniform(4),
            "'banded' needs a sparse stage, and quantize.* has none; use 'ste' or 'trust'",
        ),
    ],
)
def test_estimators_that_mean_nothing_are_refused(
    estimator: Estimator, representation: Representation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Project(representation, (estimator,))
    Project(Representation(), (estimator,))
    Project(uniform(4, Sparsify(0.5)), (estimator,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either p .* or area"),
        ({"p": 0.1, "area": 0.1}, "either p .* or area"),
        ({"p": 0.5}, r"p must be in \[0, 0.5\), got 0.5"),
        ({"p": -0.1}, r"p must be in \[0, 0.5\), got -0.1"),
        ({"area": 1.1}, r"area must be in \[0, 1\], got 1.1"),
        ({"area": math.nan}, r"area must be in \[0, 1\], got nan"),
    ],
)
def test_banded_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Banded(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_trust_refuses(factor: float) -> None:
    with pytest.raises(ValueError, match=f"factor must be positive, got {factor}"):
        Trust(factor)
