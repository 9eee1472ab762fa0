"""Gaussian error of sparsity, against order statistics and chi-squared distributions written here."""

from __future__ import annotations

import math

import pytest
from scipy.integrate import quad
from scipy.special import gammainc
from scipy.stats import chi2, norm

from rhoc.runtime.capacity import gmse, monte_carlo
from rhoc.runtime.gaussian import Source
from rhoc.runtime.representation import Representation
from rhoc.runtime.stage import Stage
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify


def structure(text: str, sparsity: float | None = None, **options: object) -> Sparsify:
    return Sparsify(sparsity, text, **options)  # type: ignore[arg-type]


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


def error(*stages: Stage) -> float:
    result = gmse(chain(*stages))
    assert result.method == "quadrature"
    return result.value


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (4, 8), (1, 2), (64, 128)])
def test_pairs_lose_the_smallest_exponential_order_statistics(kept: int, group: int) -> None:
    smallest = [sum(1 / (group - j) for j in range(rank)) for rank in range(1, group - kept + 1)]
    stage = structure(f"{2 * kept}:{2 * group}", vector=2)
    assert error(stage) == pytest.approx(sum(smallest) / group, rel=1e-9)


@pytest.mark.parametrize(("kept", "group", "vector"), [(1, 2, 4), (2, 4, 4), (3, 4, 8)])
def test_vectors_by_chi_squared_order_statistics(kept: int, group: int, vector: int) -> None:
    def lost(energy: float) -> float:
        below, density = chi2.cdf(energy, vector), chi2.pdf(energy, vector)
        ranks = range(1, group - kept + 1)
        weights = (
            rank * math.comb(group, rank) * below ** (rank - 1) * (1 - below) ** (group - rank)
            for rank in ranks
        )
        return energy * density * sum(weights)

    expected = quad(lost, 0, 200, epsabs=1e-13, limit=300, points=[vector, 2 * vector])[0] / group / vector
    stage = structure(f"{kept * vector}:{group * vector}", vector=vector)
    assert error(stage) == pytest.approx(expected, rel=1e-8)


def test_the_paired_four_of_eight_costs_more_than_two_of_four() -> None:
    assert error(structure("4:8", vector=2)) == pytest.approx(5 / 24, rel=1e-10)
    assert error(structure("4:8")) < error(structure("2:4")) < 5 / 24


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("block", [(1, 2), (2, 2), (4, 4), (16, 16)])
def test_blocks_lose_the_lower_part_of_chi_squared(sparsity: float, block: tuple[int, int]) -> None:
    size = block[0] * block[1]
    threshold = chi2.ppf(sparsity, size)
    expected = float(gammainc(size / 2 + 1, threshold / 2))  # E[energy; energy < t] / size
    assert error(structure(f"block:{block[0]}x{block[1]}", sparsity)) == pytest.approx(expected, rel=2e-7)


def test_rows_and_columns_lose_their_fraction() -> None:
    for text in ("row", "column"):
        assert error(structure(text, 0.3)) == pytest.approx(0.3, rel=1e-12)
    both = error(structure("row", 0.3), Sparsify(0.5))
    assert both == pytest.approx(0.3 + 0.7 * error(Sparsify(0.5)), rel=1e-9)


def test_by_row_is_as_good_as_by_tensor_in_the_limit() -> None:
    closed = 2 * (norm.cdf(norm.ppf(0.75)) - 0.5 - norm.ppf(0.75) * norm.pdf(norm.ppf(0.75)))
    assert error(Sparsify(0.5, granularity="row")) == pytest.approx(closed, rel=1e-9)
    assert error(Sparsify(0.5, scores="given")) == pytest.approx(closed, rel=1e-9)


RMS4 = Quantize(4, grid="midrise", observer="rms")


@pytest.mark.parametrize(
    "representation",
    [
        chain(structure("4:8", vector=2)),
        chain(structure("4:8", vector=2), RMS4),
        chain(structure("8:16", vector=4), RMS4),
        chain(structure("block:2x2", 0.5)),
        chain(structure("block:4x4", 0.5), RMS4),
        chain(Hadamard(64), structure("4:8", vector=2), Quantize(2, grid="midrise", observer="rms")),
        chain(structure("4:8", vector=2), Sparsify(0.5)),
    ],
    ids=str,
)
def test_sampling_agrees_with_quadrature(representation: Representation) -> None:
    sampled = monte_carlo(representation, rounds=4)
    assert abs(sampled.value - gmse(representation).value) < 5 * sampled.standard_error
    assert gmse(representation).method == "quadrature"


@pytest.mark.parametrize(
    "stages",
    [
        (structure("4:8", vector=2), structure("2:4")),
        (structure("block:2x2", 0.5), structure("2:4")),
        (Sparsify(0.5), structure("4:8", vector=2)),
        (structure("2:4"), structure("block:1x8", 0.5)),
    ],
)
def test_neighbours_that_are_not_independent_are_not_taken_for_it(stages: tuple[Stage, Stage]) -> None:
    survivors, _ = stages[0].gaussian(Source()) or (Source(), 0.0)
    assert stages[1].gaussian(survivors) is None
