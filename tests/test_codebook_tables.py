"""Tables of vectors: searches against brute force, k-means against scikit-learn, lattices against theory."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor

from rhoc.runtime.codebooks import e8p, gaussian, make_tables
from rhoc.runtime.codebooks.factors import FACTORS, Key
from rhoc.runtime.codebooks.fixed import search_factors
from rhoc.runtime.codebooks.k_means import k_means
from rhoc.runtime.codebooks.lattices import lattice_table
from rhoc.runtime.codebooks.nearest import nearest
from rhoc.runtime.gaussian import Source
from rhoc.runtime.stages.grids.lloyd_max import lloyd_max

from .namespace import ROOT

LLOYD_MAX = {1: 0.3633802, 2: 0.1174818, 3: 0.0345478, 4: 0.00950101}  # Max 1960, to the digits known since
PLAIN_K_MEANS = {
    (2, 4): 0.1128,
    (2, 6): 0.0319,
    (2, 8): 0.0092,
    (4, 8): 0.0986,
    (4, 12): 0.0273,
    (8, 8): 0.324,
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distances(x: Tensor, points: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared distances by their definition, `[n, k]` float64."""
    squares = (x.double().unsqueeze(1) - points.double()).square()
    return (squares if weights is None else squares * weights.double().unsqueeze(1)).sum(2)


def assert_nearest(codes: Tensor, all_distances: Tensor, tolerance: float) -> None:
    taken = all_distances.gather(1, codes.unsqueeze(1)).squeeze(1)
    assert float((taken - all_distances.min(1).values).max()) <= tolerance


def rows_of(table: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in table.tolist()}


# searches


@pytest.mark.parametrize(("size", "count"), [(1, 16), (2, 256), (2, 1000), (4, 600), (8, 300)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_nearest_point_is_that_of_brute_force(size: int, count: int, offset: float) -> None:
    x, points = normal(700, size) + offset, normal(count, size, seed=1) + offset
    # numbers of one thousand have a spacing of 6e-5, and no search can know more than they say
    assert_nearest(nearest(x, points), distances(x, points), 1e-5)
    assert torch.equal(nearest(points, points), torch.arange(count))
    double = x.double() + normal(700, size, seed=2).double() * 1e-9
    assert_nearest(nearest(double, points.double()), distances(double, points), 1e-12)


@pytest.mark.parametrize("size", [2, 8])
def test_weights_decide_which_point_is_nearest(size: int) -> None:
    x, points = normal(500, size), normal(64, size, seed=1)
    weights = normal(500, size, seed=2).exp() ** 2
    weighted = nearest(x, points, weights)
    assert_nearest(weighted, distances(x, points, weights), 1e-4)
    assert not torch.equal(weighted, nearest(x, points))
    assert torch.equal(nearest(x, points, weights[:, :1]), nearest(x, points))


# k-means


def squared_error(x: Tensor, table: Tensor) -> float:
    return float(distances(x, table).min(1).values.sum())


@pytest.mark.parametrize("init", ["kmeans++", "gaussian", "auto"])
def test_k_means_is_as_good_as_that_of_scikit_learn(init: str) -> None:
    from sklearn.cluster import KMeans

    x = normal(3000, 2)
    theirs = KMeans(16, n_init=3, random_state=0).fit(x.numpy()).inertia_
    assert squared_error(x, k_means(x, 16, init=init)) <= 1.02 * theirs


def test_k_means_finds_planted_clusters_and_leaves_none_out() -> None:
    centres = 100 * normal(64, 3, seed=5)
    x = (centres.unsqueeze(1) + 0.01 * normal(64, 50, 3, seed=6)).flatten(0, 1)
    table = k_means(x, 64)
    assert float(distances(centres, table).min(1).values.max()) < 1e-3


def test_k_means_of_few_distinct_vectors_has_no_error() -> None:
    x = normal(9, 4).repeat(3, 1)
    table = k_means(x, 32)
    assert table.shape == (32, 4)
    assert squared_error(x, table) == 0
    assert not k_means(x[:0], 8).any()
    assert not k_means(torch.zeros(10, 2), 8).any()


def test_a_fitted_table_holds_the_weighted_means_of_its_cells() -> None:
    x, weights = normal(800, 2), normal(800, 2, seed=3).exp()
    table = k_means(x, 8, weights)
    codes = distances(x, table, weights).argmin(1).numpy()
    for code in range(8):
        mine, their = x.numpy()[codes == code], weights.numpy()[codes == code]
        assert np.allclose(np.average(mine, axis=0, weights=their), table[code].numpy(), atol=0.03)
    halves = torch.cat([torch.ones(400, 1), torch.full((400, 1), 1e-12)])
    assert squared_error(x[:400], k_means(x, 8, halves)) < 1.05 * squared_error(x[:400], k_means(x[:400], 8))


def test_many_vectors_are_fitted_in_mini_batches_to_the_same_bits_every_time() -> None:
    x = normal(70_000, 2)
    table = k_means(x, 16, seed=3)
    assert torch.equal(table, k_means(x, 16, seed=3))
    assert not torch.equal(table, k_means(x, 16, seed=4))
    error = squared_error(x, table) / float(x.double().square().sum())
    assert error == pytest.approx(gaussian.shipped()[2, 4], rel=0.01)


# Gaussian tables


@pytest.mark.parametrize("bits", range(1, 9))
def test_lloyd_max_levels_are_the_means_of_their_cells(bits: int) -> None:
    levels = np.array(lloyd_max(bits).levels)
    borders = [-12.0, *((levels[:-1] + levels[1:]) / 2), 12.0]
    density = lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    kept = 0.0
    for low, high, level in list(zip(borders, borders[1:], levels, strict=False))[: 2 ** (bits - 1)]:
        middle = max(low, level - 2.0)  # the mass of an outer cell lies near its border
        mass = sum(integrate.quad(density, *piece)[0] for piece in ((low, middle), (middle, high)))
        moment = density(low) - density(high)
        assert moment / mass == pytest.approx(level, rel=1e-9)
        kept += 2 * moment * moment / mass
    if bits in LLOYD_MAX:
        assert 1 - kept == pytest.approx(LLOYD_MAX[bits], rel=1e-5)


def test_shipped_tables_have_the_error_they_are_said_to_have() -> None:
    for (size, bits), stated in gaussian.shipped().items():
        table = gaussian.gaussian_table(size, 1 << bits)
        assert table is not None
        assert table.shape == (1 << bits, size)
        assert len(torch.unique(table, dim=0)) == 1 << bits
        assert stated > 4.0 ** (-bits / size)  # Shannon
        if bits % size == 0 and size > 1 and (bits // size) in LLOYD_MAX:
            assert stated < LLOYD_MAX[bits // size] * 1.002
        assert stated <= PLAIN_K_MEANS.get((size, bits), 1.0)
        x = normal(min(1 << 15, (1 << 25) >> bits), size, seed=7)
        losses = (x - table[nearest(x, table)]).double().square().sum(1)
        ratio = float(losses.sum() / x.double().square().sum())
        spread = float((losses - stated * x.double().square().sum(1)).std()) / size / math.sqrt(len(x))
        assert ratio == pytest.approx(stated, abs=5 * spread)


def test_four_points_of_the_plane_are_two_signs() -> None:
    """Quantising each of two numbers to its sign is optimal, with error 1 - 2 / pi."""
    assert gaussian.shipped()[2, 2] == pytest.approx(1 - 2 / math.pi, abs=4e-4)
    table = gaussian.gaussian_table(2, 4)
    assert table is not None
    assert table.norm(dim=1).numpy() == pytest.approx([2 / math.sqrt(math.pi)] * 4, rel=0.01)


def test_what_ships_is_what_the_command_computes() -> None:
    for size, bits in ((1, 3), (2, 2)):
        plan = make_tables.plan(size, bits)
        short = make_tables.Plan(size, bits, min(plan.rounds, 100), plan.sample, plan.last)
        error, standard_error = make_tables.measure(make_tables.compute(short))
        assert error == pytest.approx(gaussian.shipped()[size, bits], abs=4 * standard_error + 1e-4)
    assert set(gaussian.shipped()) == {(plan.dimensions, plan.bits) for plan in make_tables.plans()}
    assert gaussian.gaussian_table(2, 100) is None
    assert gaussian.gaussian_table(7, 16) is None
    assert gaussian.FILE.stat().st_size < 2_000_000
    assert gaussian.FILE.is_relative_to(ROOT)


def test_the_command_adds_to_a_file(tmp_path: object) -> None:
    from pathlib import Path

    from safetensors import safe_open

    path = Path(str(tmp_path)) / "some.safetensors"
    assert make_tables.main([str(path), "1,1"]) == make_tables.main([str(path), "1,2"]) == 0
    with safe_open(str(path), framework="pt") as file:
        assert set(file.keys()) == {"d1b1", "d1b2"}
        facts = json.loads(file.metadata()["tables"])
    assert [fact["bits"] for fact in facts] == [1, 2]
    assert facts[1]["gmse"] == pytest.approx(LLOYD_MAX[2], abs=5 * facts[1]["standard_error"])


# lattices

SHELLS = {  # vectors by squared norm: theta series (Conway and Sloane, chapter 4)
    "d4": {0: 1, 2: 24, 4: 24, 6: 96, 8: 24, 10: 144, 12: 96, 14: 192},
    "e8": {0: 1, 2: 240, 4: 2160, 6: 6720, 8: 17520, 10: 30240},
}


@pytest.mark.parametrize("name", SHELLS)
def test_lattice_tables_are_whole_shells_of_lattice_points(name: str) -> None:
    total = sum(SHELLS[name].values())
    table = lattice_table(name, total)
    norms, counts = table.square().sum(1).unique(return_counts=True)
    assert dict(zip(norms.int().tolist(), counts.tolist(), strict=True)) == SHELLS[name]
    assert len(torch.unique(table, dim=0)) == total
    doubled = (2 * table).int()
    assert torch.equal(doubled.float(), 2 * table)
    assert not (doubled.sum(1) % 4).any()  # an even sum
    odd = doubled % 2 != 0
    assert torch.equal(odd.any(1), odd.all(1))  # all whole or all halves
    assert bool(odd.any()) == (name == "e8")


@pytest.mark.parametrize(
    ("name", "count"), [("d4", 256), ("d4", 16), ("e8", 256), ("e8", 4096), ("e8", 65536)]
)
def test_a_shell_is_cut_in_pairs_without_a_direction(name: str, count: int) -> None:
    table = lattice_table(name, count)
    rows = rows_of(table)
    assert len(rows) == count
    alone = [row for row in rows if tuple(-value for value in row) not in rows]
    assert len(alone) <= 1
    outer = table[table.square().sum(1) == table.square().sum(1).max()]
    spread = outer.square().mean(0) / outer.square().mean()
    assert float(spread.max()) < 1.5 or len(outer) < 32


def test_e8p_is_two_to_the_sixteen_points_of_the_moved_lattice() -> None:
    assert sum([1, 8, 28, 56 + 8, 70 + 56]) == 227  # magnitudes of squared norm 2, 4, 6, 8, 10
    squared = e8p.magnitudes().square().sum(1)
    assert int((squared <= 10).sum()) == 227
    assert int((squared == 12).sum()) == 29
    points = e8p.points()
    assert len(torch.unique(points, dim=0)) == 1 << 16
    for last_bit, move in ((0, 0.25), (1, -0.25)):
        unmoved = points[last_bit::2] - move
        doubled = (2 * unmoved).int()
        assert torch.equal(doubled.float(), 2 * unmoved)
        assert (doubled % 2 != 0).all()
        assert not (doubled.sum(1) % 4).any()
    assert torch.equal(e8p.nearest(points), torch.arange(1 << 16))
    assert torch.equal(e8p.nearest(points.double() * 1.0001), torch.arange(1 << 16))


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.7, 1.0, 1.3, 3.0, 50.0])
def test_the_e8p_search_finds_what_all_points_would_say(spread: float) -> None:
    x = torch.cat(
        [normal(60, 8, seed=1, dtype=torch.float64) * spread, torch.zeros(1, 8, dtype=torch.float64)]
    )
    exact = torch.cdist(x, e8p.points().double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    assert_nearest(e8p.nearest(x), exact, 1e-9 * (1 + spread**2))
    assert_nearest(e8p.nearest(x.float()), exact, 1e-5 * (1 + spread**2))


def test_sums_of_signs_in_an_e8p_code() -> None:
    """A code is 8 bits of magnitudes, 7 of signs, 1 of the move; the eighth sign makes the sum even."""
    points, sizes = e8p.points(), e8p.magnitudes()
    for entry, signs in itertools.product((0, 100, 255), (0, 1, 64, 127)):
        for move in (0, 1):
            point = points[entry << 8 | signs << 1 | move] - (0.25 if move == 0 else -0.25)
            assert torch.equal(point.abs(), sizes[entry])
            assert [(float(value) < 0) for value in point[:7]] == [bool(signs >> i & 1) for i in range(7)]
            assert float(point.sum()) % 2 == 0


SLOW_FACTORS = {"e8p"}


@pytest.mark.parametrize(
    "key", [key for key in FACTORS if key[0] not in SLOW_FACTORS and key[2] <= 8], ids=str
)
def test_known_factors_are_those_of_the_search(key: Key) -> None:
    assert search_factors(*key, Source()) == FACTORS[key]  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("key", FACTORS, ids=str)
def test_all_known_factors_are_those_of_the_search(key: Key) -> None:
    assert search_factors(*key, Source()) == FACTORS[key]  # type: ignore[arg-type]
