"""Errors on random numbers and on tensors: distributions, octaves, precision, and values that ship."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import laplace, norm, t

from rhoc import specs
from rhoc.compiler import gaussian_errors
from rhoc.compiler.capacity import capacities, kind_of, summarise
from rhoc.compiler.gaussian_errors import SHIPPED, gaussian_error, needed, probe, renew, shipped, stale
from rhoc.compiler.spec import load_spec
from rhoc.runtime.capacity import error_on, gmse, monte_carlo
from rhoc.runtime.distributions import NORMAL, Distribution, Laplace, StudentT, distribution
from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.text_parser import from_text

Array = NDArray[np.float64]

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
SUM = (
    "quantize(int2, midrise, channel, rms) + quantize(int2, midrise, channel, mse)"  # quadrature knows no sum
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Distributions


@pytest.mark.parametrize(
    ("drawn", "fourth", "tail"),
    [
        (NORMAL, 3.0, 2 * norm.sf(2.0)),
        (Laplace(), 6.0, math.exp(-2.0 * math.sqrt(2))),
        (StudentT(12.0), 3 + 6 / (12 - 4), 2 * t.sf(2.0 * math.sqrt(12 / 10), 12)),
        (StudentT(5.0), None, 2 * t.sf(2.0 * math.sqrt(5 / 3), 5)),  # its fourth moment converges too slowly
    ],
    ids=["normal", "laplace", "student-t:12", "student-t:5"],
)
def test_distributions_have_unit_variance_and_their_own_tails(
    drawn: Distribution, fourth: float | None, tail: float
) -> None:
    x = drawn.draw((2000, 1000), seeded(3)).double()
    assert float(x.mean()) == pytest.approx(0, abs=4e-3)
    assert float(x.square().mean()) == pytest.approx(1, abs=8e-3)
    assert float((x.abs() > 2).double().mean()) == pytest.approx(tail, rel=0.02)
    assert float((x > 2).double().mean()) == pytest.approx(tail / 2, rel=0.03), "both sides alike"
    if fourth is not None:
        assert float(x.square().square().mean()) == pytest.approx(fourth, rel=0.03)


@pytest.mark.parametrize("drawn", [NORMAL, Laplace(), StudentT(3.0)])
def test_draws_follow_from_the_seed(drawn: Distribution) -> None:
    first = drawn.draw((7, 11), seeded(1))
    assert (first.dtype, first.shape) == (torch.float32, (7, 11))
    assert torch.equal(first, drawn.draw((7, 11), seeded(1)))
    assert not torch.equal(first, drawn.draw((7, 11), seeded(2)))


def test_distributions_by_name() -> None:
    assert distribution("normal") is NORMAL
    assert distribution("laplace") == Laplace()
    assert distribution("student-t") == StudentT(5.0)
    assert distribution("student-t:3.5") == StudentT(3.5)


@pytest.mark.parametrize(
    "name", ["cauchy", "", "laplace:2", "student-t:2", "student-t:nan", "student-t:inf", "student-t:x"]
)
def test_no_such_distribution(name: str) -> None:
    with pytest.raises(RequestError) as refused:
        distribution(name)
    assert repr(name) in refused.value.message
    assert "student-t" in refused.value.advice


# Errors on other numbers than Gaussian ones


@pytest.mark.parametrize(
    ("drawn", "density"),
    [
        (Laplace(), laplace(scale=1 / math.sqrt(2)).pdf),
        (StudentT(8.0), lambda x: t(8, scale=math.sqrt(6 / 8)).pdf(x)),
    ],
    ids=["laplace", "student-t"],
)
def test_a_gaussian_clip_on_other_numbers_against_their_density(drawn: Distribution, density: Any) -> None:
    """The clip is that for Gaussian numbers, times the rms of each row, here of nearly unit variance."""
    representation = from_text("quantize(int4, midrise, channel, rms)")
    step = 2.514004471 / 7.5  # the optimum for Gaussian numbers of unit variance
    levels = (np.arange(16) - 7.5) * step
    edges = np.concatenate([[-80.0], (levels[1:] + levels[:-1]) / 2, [80.0]])
    cells = zip(levels, edges[:-1], edges[1:], strict=True)
    exact = sum(quad(lambda x, v=v: (x - v) ** 2 * density(x), a, b, limit=200)[0] for v, a, b in cells)
    sampled = monte_carlo(representation, distribution=drawn)
    # Rows of 4096 numbers have an rms that varies by a per cent or two, which moves the error a little.
    assert sampled.value == pytest.approx(exact, rel=0.01, abs=4 * sampled.standard_error)
    assert sampled.value > 1.5 * gmse(representation).value


def test_error_on_a_tensor_by_hand() -> None:
    kept = from_text("sparsify(0.5)")
    x = torch.tensor([[3.0, -1.0, 2.0, 0.5]])
    assert error_on(kept, x) == pytest.approx((1 + 0.25) / (9 + 1 + 4 + 0.25), rel=1e-12)
    assert error_on(kept, 1e-30 * x) == pytest.approx(1.25 / 14.25, rel=1e-6), "float32 squares would vanish"
    assert error_on(kept, torch.zeros(2, 4)) == 0
    assert error_on(Representation(), x) == 0
    with pytest.raises(RequestError, match="2:4"):
        error_on(from_text("sparsify(2:4)"), torch.ones(2, 7))


# Monte Carlo


def test_it_stops_at_the_precision_that_was_asked_for() -> None:
    representation = from_text("quantize(int4, channel, absmax)")
    rough = monte_carlo(representation, rounds=2, precision=0.5)
    fine = monte_carlo(representation, rounds=2, precision=4e-3)
    assert rough == monte_carlo(representation, rounds=2), "no more rounds than needed"
    assert fine.standard_error <= 4e-3 * fine.value < rough.standard_error
    assert fine == monte_carlo(representation, rounds=2, precision=4e-3)
    capped = monte_carlo(representation, rounds=2, precision=1e-9, most=6)
    six = monte_carlo(representation, rounds=6)
    assert (capped.value, capped.standard_error) == (six.value, six.standard_error)
    assert capped.method == "monte carlo; 6 tensors did not reach that precision"


def test_nothing_lost_needs_no_further_round() -> None:
    nothing = monte_carlo(Representation(), rounds=2, precision=1e-6)
    assert (nothing.value, nothing.standard_error, nothing.at_unit) == (0.0, 0.0, None)


def test_one_round_has_no_spread() -> None:
    with pytest.raises(ValueError, match="two rounds at least, got 1"):
        monte_carlo(from_text("sparsify(0.5)"), rounds=1)


# Sizes: scales that are powers of two


def mxfp4(x: Array) -> Array:
    """MXFP4 as the OCP specification writes it, along the last dimension of 32."""
    exponent = np.floor(np.log2(np.abs(x).max(-1, keepdims=True))) - 2
    scaled = np.clip(x / 2.0**exponent, -6, 6)
    place = np.clip(np.floor(np.log2(np.maximum(np.abs(scaled), 2.0**-9))), 0, None) - 1
    return np.asarray(np.rint(scaled / 2.0**place) * 2.0**place * 2.0**exponent)


def test_the_mean_over_an_octave_of_sizes_against_a_simulation() -> None:
    assert set(
        mxfp4(np.append(np.linspace(0, 6, 601), [0.0] * 7).reshape(19, 32)[:, :1] * 0 + E2M1[None]).ravel()
    ) <= set(E2M1)
    chance = np.random.default_rng(5)
    phases, errors = np.arange(24) / 24, []
    for phase in phases:
        x = chance.standard_normal((40_000, 32)) * 2.0**phase
        errors.append(float(np.square(x - mxfp4(x)).sum() / np.square(x).sum()))
    found = gmse(load_spec("mxfp4").rules[0].weight_representation)
    assert found.method == "quadrature"
    assert found.value == pytest.approx(np.mean(errors), rel=1e-3)
    assert found.at_unit == pytest.approx(errors[0], rel=3e-3)
    assert max(errors) / min(errors) > 1.01, "the size does matter"


def test_sampling_an_octave_agrees_with_quadrature() -> None:
    representation = load_spec("mxfp4").rules[0].weight_representation
    exact, sampled = gmse(representation), monte_carlo(representation, rounds=8)
    assert abs(sampled.value - exact.value) < 4 * sampled.standard_error
    assert sampled.at_unit == pytest.approx(exact.at_unit, rel=3e-3)


def test_the_value_at_one_stands_only_beside_means() -> None:
    assert gmse(from_text("quantize(int4, group=32)")).at_unit is None
    assert monte_carlo(from_text("quantize(int4, group=32)"), rounds=2).at_unit is None


# Values that ship


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of shipped values of the test's own, none at first."""
    monkeypatch.setattr(specs, "GAUSSIAN_ERRORS", tmp_path / "errors.json")
    for cached in (shipped, gaussian_error):
        cached.cache_clear()
    yield tmp_path / "errors.json"
    for cached in (shipped, gaussian_error):
        cached.cache_clear()


@pytest.fixture
def two_needed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Representation]:
    """Two quick representations as all that shipped specs need."""
    texts = (SUM, "sparsify(2:4) >> sparsify(1:2)")
    found = {text: from_text(text) for text in texts}
    monkeypatch.setattr(gaussian_errors, "needed", lambda: found)
    monkeypatch.setattr(gaussian_errors, "_ROUNDS", (2, 3))
    return found


def changed(file: Path, text: str, **values: object) -> None:
    document = json.loads(file.read_text())
    document["errors"][text] |= values
    file.write_text(json.dumps(document))
    shipped.cache_clear()
    gaussian_error.cache_clear()


def test_without_a_value_it_is_estimated(values: Path) -> None:
    found = gaussian_error(from_text(SUM))
    assert found == monte_carlo(from_text(SUM))
    assert found.method == "monte carlo"


def test_a_fresh_value_is_taken_and_rotations_change_nothing(
    values: Path, two_needed: dict[str, Representation]
) -> None:
    renew()
    changed(values, SUM, value=0.125, standard_error=0.001)
    for text in (SUM, f"hadamard(64) >> ({SUM})"):
        found = gaussian_error(from_text(text))
        assert (found.value, found.standard_error, found.method) == (0.125, 0.001, SHIPPED)


@pytest.mark.parametrize("change", [{"probe": 0.2}, {"probe": None}, {"digest": "feedfeedfeedfeed"}])
def test_a_stale_value_says_so(
    values: Path, two_needed: dict[str, Representation], change: dict[str, object]
) -> None:
    renew()
    assert list(stale()) == []
    changed(values, SUM, value=0.125, **change)
    found = gaussian_error(from_text(SUM))
    assert found.value == monte_carlo(from_text(SUM)).value
    assert "stale" in found.method
    assert "make gaussian-errors" in found.method
    assert gaussian_error(from_text(SUM), verify=False).value == 0.125
    assert list(stale()) == [SUM]


def test_renewing_computes_what_is_missing_and_drops_what_nothing_needs(
    values: Path, two_needed: dict[str, Representation], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(stale()) == sorted(two_needed)
    renew((SUM,))
    document = json.loads(values.read_text())
    (entry,) = document["errors"].values()
    expected = monte_carlo(from_text(SUM), rounds=entry["rounds"])
    assert (entry["value"], entry["standard_error"]) == (expected.value, expected.standard_error)
    assert entry["probe"] == probe(from_text(SUM))
    assert document["command"] == "make gaussian-errors"
    document["errors"]["quantize(int9)"] = entry
    values.write_text(json.dumps(document))
    shipped.cache_clear()
    renew()
    assert set(json.loads(values.read_text())["errors"]) == set(two_needed)
    assert list(stale()) == []
    assert SUM in capsys.readouterr().err
    with pytest.raises(RequestError, match="no shipped spec needs a value for 'int4'"):
        renew(("int4",))


def test_every_value_that_is_needed_ships_and_is_fresh() -> None:
    assert list(stale()) == [], "run `make gaussian-errors`"
    assert set(shipped()) == set(needed()), "run `make gaussian-errors`"
    for entry in shipped().values():
        assert 0 < entry["standard_error"] < 2e-3 * entry["value"]


def test_the_small_tensor_tells_what_is_fitted_from_what_is_exact() -> None:
    """Four rows hold fewer vectors than a codebook has codes: there every change would go unnoticed."""
    assert (probe(from_text("codebook(8)")) or 0) > 0.05
    assert probe(from_text("sparsify(5:7)")) is None


# Rows


def test_rows_of_other_numbers_have_no_rho() -> None:
    (row,) = capacities(load_spec("int4"), Laplace())
    assert (row["rho"], row["rho_reason"]) == (None, "rho follows from the error on Gaussian numbers")
    assert row["gmse_method"] == "monte carlo"
    assert row["gmse_standard_error"] > 0


def test_rows_of_a_tensor_count_what_is_stored() -> None:
    x = torch.randn(96, 160, generator=seeded(0))
    (row,) = capacities(load_spec("int8-huffman"), x)
    weights = load_spec("int8-huffman").rules[0].weight_representation
    code = weights.encode(x)
    assert (
        row["bits_per_weight"] == 8 * sum(field.nbytes for field in weights.pack(code).values()) / x.numel()
    )
    difference = (weights.decode(code) - x).double()
    assert row["gmse"] == pytest.approx(
        float(difference.square().sum() / x.double().square().sum()), rel=1e-12
    )
    assert row["gmse_standard_error"] == 0
    constant = torch.ones(96, 160)
    (flat,) = capacities(load_spec("int8-huffman"), constant)
    assert flat["bits_per_weight"] < row["bits_per_weight"] / 2, "one symbol alone takes hardly a bit"


def test_a_precision_for_a_given_tensor_is_refused() -> None:
    with pytest.raises(RequestError, match="the error on a given tensor is exact; leave the precision out"):
        capacities(load_spec("int4"), torch.ones(4, 128), 1e-3)


def test_parts_of_no_published_family_are_taken_as_scalar_and_say_so() -> None:
    (row,) = capacities(load_spec("quip-sharp2"))
    (plain,) = capacities(load_spec("fp8"))
    words = "a part of no published family is taken as a scalar format of the same Gaussian error"
    assert words in row["rho_source"]
    assert words not in plain["rho_source"]
    assert 0 < row["rho"] < plain["rho"] < 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("dense", "dense"),
        ("hadamard(64)", "dense"),
        ("hadamard(64) >> quantize(int3)", "integer"),
        ("quantize(nf4, group=64)", "float"),
        ("sparsify(0.5) >> quantize(e4m3)", "sparse"),
        ("codebook()", "codebook"),
        (SUM, "sum"),
        ("product(8)", "low rank"),
    ],
)
def test_kinds_in_a_word(text: str, word: str) -> None:
    assert kind_of(from_text(text)) == word


def test_a_summary_states_what_capacity_states() -> None:
    spec = load_spec("2of4-int4")
    summary, (row,) = summarise(spec), capacities(spec)
    for key in ("gmse", "gaussian_bits", "bits_per_weight", "shannon_efficiency", "rho"):
        assert summary[key] == row[key]
    assert summary["shannon_efficiency"] == pytest.approx(
        -math.log(summary["gmse"], 4) / summary["bits_per_weight"]
    )
    assert summarise(load_spec("dense"))["shannon_efficiency"] is None
