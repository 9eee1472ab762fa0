"""Masks by the range of a grid and by the sphere of a codebook, against formulas written here in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import chi2, norm
from torch import Tensor

from rhoc.runtime.codebooks import e8p
from rhoc.runtime.codebooks.gaussian import gaussian_table
from rhoc.runtime.codebooks.lattices import lattice_table
from rhoc.runtime.estimators import Clip, Estimator, Trust
from rhoc.runtime.projection import Project, project_with_gradient
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Entropy, Hadamard, Quantize, Scale, Sparsify, Stage

Array = NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


def mask_of(x: Tensor, representation: Representation, estimator: Estimator) -> NDArray[np.bool_]:
    """What a gradient of ones becomes, for a representation without a rotation."""
    leaf = x.clone().requires_grad_()
    project_with_gradient(leaf, representation, (estimator,)).sum().backward()
    assert leaf.grad is not None
    assert ((leaf.grad == 0) | (leaf.grad == 1)).all()
    return leaf.grad.bool().numpy()


# Clip


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("stage", "top"),
    [
        (Quantize(4, strategy="channel", observer="rms", grid="midrise", clip=2.0), 2.0),
        (Quantize(2, strategy="channel", observer="rms", grid="midtread", clip=1.2), 1.2),
        (Quantize(4, "float", strategy="channel", observer="rms", clip=1.5), 1.5),
        (Quantize(1, strategy="channel", observer="rms", clip=0.8), 0.8),
    ],
    ids=str,
)
def test_clip_passes_what_lies_in_the_range(stage: Quantize, top: float, factor: float) -> None:
    x = normal(16, 256)
    rms = np.sqrt(np.mean(x.numpy() ** 2, axis=-1, keepdims=True))
    expected = np.abs(x.numpy()) <= factor * top * rms
    mask = mask_of(x, chain(stage), Clip(factor))
    assert np.array_equal(mask, expected)
    fraction = 2 * norm.sf(factor * top)
    assert 1 - mask.mean() == pytest.approx(fraction, abs=5 * math.sqrt(fraction / x.numel()) + 1e-4)


def test_clip_at_the_edge_of_the_range() -> None:
    # The scale is 2 and the outermost level 6: the bound is exactly 3, and passes itself.
    beyond = math.nextafter(3.0, 4.0)
    x = torch.tensor([[6.0, 3.0, -3.0, beyond, -beyond, 2.9, 0.0, -6.0]], dtype=torch.float64)
    stage = Quantize(3, strategy="channel", grid="midtread")
    assert stage.encode(x)[1]["scale"].tolist() == [2.0]
    expected = [[False, True, True, False, False, True, True, False]]
    assert mask_of(x, chain(stage), Clip(0.5)).tolist() == expected
    assert mask_of(x, chain(stage), Clip()).all()


def test_clip_takes_the_largest_level_on_both_sides() -> None:
    # -8 ... 7 under a scale of max / 7.5: what lies beyond 7 is clipped or rounded down to it.
    x = normal(8, 512)
    stage = Quantize(4, strategy="channel")
    top = np.abs(x.numpy()).max(-1, keepdims=True) / 7.5 * 7
    mask = mask_of(x, chain(stage), Clip())
    assert np.array_equal(mask, np.abs(x.numpy()) <= top)
    assert not mask.all()


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("wrapped", [False, True])
def test_clip_between_the_ends_of_a_grid_with_a_zero_point(factor: float, wrapped: bool) -> None:
    x = normal(8, 64) + 0.7
    stage = Quantize(3, symmetric=False, strategy="channel", observer="minmax")
    fields = stage.encode(x)[1]
    scale, zero = (fields[name].double().numpy()[:, None] for name in ("scale", "zero_point"))
    lowest, highest = (0 - zero) * scale * factor, (7 - zero) * scale * factor
    expected = (lowest <= x.numpy()) & (x.numpy() <= highest)
    assert 0.3 < expected.mean() < 1
    representation = chain(Entropy(chain(stage))) if wrapped else chain(stage)
    assert np.array_equal(mask_of(x, representation, Clip(factor)), expected)


def test_clip_of_survivors_behind_scales() -> None:
    x = normal(6, 32) * torch.logspace(-2, 2, 32, dtype=torch.float64)
    sparse = Sparsify(sparsity_structure="2:4")
    r = chain(Scale(), sparse, Quantize(3, strategy="channel", observer="rms", grid="midrise", clip=1.1))
    columns = np.sqrt(np.mean(x.numpy() ** 2, axis=0))
    scaled = x.numpy() / columns
    groups = np.abs(scaled).reshape(6, 8, 4)
    survives = (np.argsort(np.argsort(-groups, -1), -1) < 2).reshape(6, 32)
    kept = scaled[survives].reshape(6, 16)
    rms = np.sqrt(np.mean(kept**2, axis=-1, keepdims=True))
    mask = mask_of(x, r, Clip())
    assert np.array_equal(mask[survives], (np.abs(scaled) <= 1.1 * rms)[survives])
    assert not mask[survives].all()
    affine = chain(Sparsify(sparsity_structure="2:4"), Quantize(3, symmetric=False, strategy="channel"))
    view = affine.view(x)
    assert view.kept is not None
    assert mask_of(x, affine, Clip(0.5))[~view.kept.numpy()].all(), "what is zeroed passes"


# Trust of vectors


def sphere(table: Array) -> float:
    """The largest norm, and half the way from there to the nearest other vector."""
    norms = np.linalg.norm(table, axis=1)
    largest = norms.argmax()
    others = np.delete(np.arange(len(table)), largest)
    return float(norms[largest] + cdist(table[[largest]], table[others]).min() / 2)


def blocked(x: Array, size: int, radius: float | Array) -> Array:
    """True for the numbers of vectors outside the radius."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % size)))
    outside = np.linalg.norm(padded.reshape(len(x), -1, size), axis=-1) > radius
    return np.asarray(np.repeat(outside, size, axis=1)[:, : x.shape[1]])


def rms_of(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize(("size", "bits"), [(1, 2), (1, 4), (2, 4), (2, 8), (4, 8)])
def test_vectors_outside_the_sphere_stand_still(size: int, bits: int) -> None:
    x = normal(300, 512)
    table = gaussian_table(size, 1 << bits)
    assert table is not None
    radius = sphere(table.double().numpy())
    mask = mask_of(x, chain(Codebook(size, 1, bits, "gaussian")), Trust())
    expected = blocked(x.numpy() / rms_of(x), size, radius)
    assert np.mean(mask == expected) < 1e-5, "but for what lies on the sphere in float32"
    fraction = float(chi2.sf(radius**2, size))
    assert 1 - mask.mean() == pytest.approx(fraction, abs=5 * math.sqrt(size * fraction / x.numel()))


def test_vectors_of_one_number_follow_the_rule_for_grids() -> None:
    # Equal cells: half a cell beyond the last level, as |R(x) - x| <= T says.
    x = normal(32, 256)
    levels = tuple((k + 0.5) * 0.6 for k in range(-4, 4))
    table = Codebook(1, 1, 3, "table", table=levels, observer="rms", strategy="channel")
    grid = Quantize(3, strategy="channel", observer="rms", grid="midrise", clip=3.5 * 0.6)
    for factor in (1.0, 1.5):
        masks = [mask_of(x, chain(stage), Trust(factor)) for stage in (table, grid)]
        assert np.array_equal(*masks)
        assert 0.9 < masks[0].mean() < 1


def test_the_sphere_of_e8p() -> None:
    x = normal(64, 512)
    r = chain(Codebook(8, 1, 16, "e8p"))
    (stage,) = r.bound_stages
    assert isinstance(stage, Codebook)
    assert stage.factors is not None
    longest = float(e8p.points().double().norm(dim=1).max())
    radius = stage.factors[0] * (longest + math.sqrt(2) / 2)  # points of E8 are at least sqrt(2) apart
    expected = blocked(x.numpy() / rms_of(x), 8, radius)
    assert 0 < expected.mean() < 0.1
    assert np.mean(mask_of(x, r, Trust()) == expected) < 1e-4


def test_tables_that_are_fitted_and_spheres_of_their_own() -> None:
    x = normal(8, 61)  # the last vector of a row is filled up
    x[:4] *= 3
    r = chain(Codebook(2, 1, 3, scope="group", rows_per_codebook=4))
    tables = r.encode(x).fields[0]["codebook"].double().numpy()[:, 0]
    assert tables.shape == (2, 8, 2)
    radius = np.repeat([sphere(table) for table in tables], 4)[:, None]
    expected = blocked(x.numpy(), 2, radius)
    assert expected[:4].any()
    assert expected[4:].any()
    assert np.array_equal(mask_of(x, r, Trust()), ~expected)


def test_several_codebooks_have_one_sphere() -> None:
    x = normal(64, 128)
    r = chain(Codebook(4, 2, 4, "gaussian"))
    view = r.view(x)
    stage, fields = view.steps[0]
    assert isinstance(stage, Codebook)
    first, second = stage.tables(fields, x)[0].numpy()
    norms = np.linalg.norm(second, axis=1)
    largest = norms.argmax()
    gap = cdist(second[[largest]], np.delete(second, largest, 0)).min()
    radius = np.linalg.norm(first, axis=1).max() + norms.max() + gap / 2
    expected = blocked(x.numpy() / float(stage.spread(fields, 128, x)), 4, radius)
    assert np.array_equal(mask_of(x, r, Trust()), ~expected)


def test_parts_of_a_product_have_spheres_of_their_own() -> None:
    x = normal(16, 62) * torch.tensor([1.0, 1, 5, 5]).double().repeat(16)[:62]
    r = chain(Codebook(4, 2, 3, composition="product"))
    tables = r.encode(x).fields[0]["codebook"].double().numpy()[0]
    radius = np.tile([sphere(table) for table in tables], 16)[None, :31]
    expected = blocked(x.numpy(), 2, radius)
    assert expected[:, 0::4].any()
    assert expected[:, 2::4].any()
    assert np.array_equal(mask_of(x, r, Trust()), ~expected)


@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
def test_a_given_radius_is_in_units_of_the_scale(strategy: str) -> None:
    x = normal(8, 64) * torch.logspace(-1, 1, 8, dtype=torch.float64)[:, None]
    size = {"group_size": 6} if strategy == "group" else {}
    stage = Codebook(4, 1, 8, "d4", strategy=strategy, **size)  # type: ignore[arg-type]
    scale = chain(stage).encode(x).fields[0]["scale"].numpy()
    spread = {"tensor": scale, "channel": scale[:, None]}.get(strategy)
    if spread is None:
        spread = np.repeat(scale, 6, axis=1)[:, :64]
    expected = blocked(x.numpy() / spread, 4, 2.5)
    assert 0 < expected.mean() < 1
    assert np.array_equal(mask_of(x, chain(stage), Trust(radius=2.5)), ~expected)


def test_survivors_that_form_vectors() -> None:
    x = normal(16, 64)
    r = chain(Sparsify(sparsity_structure="2:4"), Codebook(2, 1, 8, "gaussian"))
    groups = np.abs(x.numpy()).reshape(16, 16, 4)
    survives = (np.argsort(np.argsort(-groups, -1), -1) < 2).reshape(16, 64)
    carry = x.numpy()[survives].reshape(16, 32)
    outside = blocked(carry / math.sqrt(np.mean(carry**2)), 2, 2.0)
    expected = np.ones((16, 64), bool)
    expected[survives] = ~outside.ravel()
    assert 0 < outside.mean() < 1
    assert np.array_equal(mask_of(x, r, Trust(radius=2.0)), expected)


def test_a_sphere_behind_a_rotation() -> None:
    x, upstream = normal(8, 64), normal(8, 64, seed=1)
    r = chain(Hadamard(16), Codebook(2, 1, 4, "gaussian"))
    rotated = chain(Hadamard(16)).encode(x).carry
    passes = torch.from_numpy(~blocked(rotated.numpy() / rms_of(x), 2, 1.5))
    expected = chain(Hadamard(16)).encode(passes * chain(Hadamard(16)).encode(upstream).carry).carry
    leaf = x.clone().requires_grad_()
    project_with_gradient(leaf, r, (Trust(radius=1.5),)).backward(upstream)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-12)


def test_coded_vectors_have_the_same_sphere() -> None:
    x = normal(8, 64)
    stage = Codebook(2, 1, 4, "gaussian")
    plain = mask_of(x, chain(stage), Trust(radius=1.5))
    assert not plain.all()
    assert np.array_equal(mask_of(x, chain(Entropy(chain(stage))), Trust(radius=1.5)), plain)


@pytest.mark.parametrize("shape", [(16,), (0, 16), (4, 0), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_spheres_of_every_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for stage in (
        Codebook(2, 1, 4, "gaussian", strategy="channel"),
        Codebook(4, 2, 2, composition="product"),
        Codebook(2, 1, 2, scope="group", rows_per_codebook=1),
    ):
        x = normal(*shape).to(dtype).requires_grad_()
        projected = project_with_gradient(x, chain(stage), (Trust(),))
        projected.sum().backward()
        assert x.grad is not None
        assert (x.grad.shape, x.grad.dtype) == (shape, dtype)
        assert ((x.grad == 0) | (x.grad == 1)).all()


def test_zeros_lie_in_every_sphere() -> None:
    r = chain(Codebook(2, 1, 4, "gaussian", strategy="channel"))
    x = normal(3, 8)
    x[1] = 0
    assert mask_of(x, r, Trust())[1].all()


def test_lattices_are_known_to_be_as_dense_as_their_sphere_says() -> None:
    for table in (lattice_table("d4", 256), lattice_table("e8", 512)):
        numbers = table.double().numpy()
        assert sphere(numbers) == pytest.approx(np.linalg.norm(numbers, axis=1).max() + math.sqrt(2) / 2)


@pytest.mark.parametrize(
    ("estimator", "representation", "message"),
    [
        (Clip(), chain(Sparsify(0.5)), r"'clip' needs a grid, and sparsify\(0.5\) has none; use 'ste'"),
        (Clip(), chain(Codebook(2, 1, 4)), "'clip' needs a grid, and codebook.* has none"),
        (
            Clip(),
            chain(Sparsify(0.5, granularity="row"), Hadamard(4), Quantize(4)),
            "'clip' cannot see the levels of .* behind a rotation, which has to come first; use 'ste'",
        ),
        (Trust(radius=2.0), chain(Quantize(4)), r"radius of 'trust' is for codebooks, and quantize\(int4"),
        (
            Trust(),
            chain(Sparsify(sparsity_structure="2:4"), Hadamard(4), Codebook(2, 1, 4)),
            "'trust' cannot see the vectors of .*; put rotations first",
        ),
        (
            Trust(),
            chain(Entropy(chain(Hadamard(4), Quantize(4)))),
            r"estimators cannot see the rotation inside of entropy\(.*; put it in front of that stage",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    estimator: Estimator, representation: Representation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Project(representation, (estimator,))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_factors_and_radii_are_positive(value: float) -> None:
    with pytest.raises(ValueError, match=f"factor must be positive, got {value}"):
        Clip(value)
    with pytest.raises(ValueError, match=f"radius must be positive, got {value}"):
        Trust(radius=value)
