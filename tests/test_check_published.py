"""Published fits against runs: objectives by formulas written here, distances, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rhoc.compiler.check_published import HEADINGS, check_published, check_table
from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws.runs import Runs

from .public_runs import named_runs


def runs(name: str) -> Runs:
    """Of a table; where it is absent the test that asks is skipped."""
    return read_runs(named_runs(name))


def by_fit(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["fit"]: row for row in rows}


def huber(residual: np.ndarray, delta: float) -> float:
    size = np.abs(residual)
    return float(np.sum(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))))


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    return by_fit(check_published(runs("chinchilla_runs"), "chinchilla", bootstraps=100))


class TestChinchilla:
    @pytest.mark.parametrize(
        ("name", "constants"),
        [
            ("hoffmann", (1.69, 406.4, 0.34, 410.7, 0.28)),
            (
                "hoffmann-digits",
                (np.exp(0.5267228), np.exp(6.0073404), 0.33917084, np.exp(6.0179186), 0.2849083),
            ),
            ("besiroglu", (1.81686, 482.00572, 0.34781, 2085.43420, 0.36585)),
        ],
    )
    def test_the_objective_is_that_of_the_formula(
        self, rows: dict[str, dict[str, Any]], name: str, constants: tuple[float, ...]
    ) -> None:
        e, a, alpha, b, beta = constants
        points = runs("chinchilla_runs")
        predicted = e + a / points.params**alpha + b / points.tokens**beta
        expected = huber(np.log(predicted) - np.log(points.loss), 1e-3)
        assert rows[name]["objective"] == pytest.approx(expected, rel=1e-5)
        assert rows[name]["runs"] == rows[name]["of"] == 240

    def test_the_optimum_is_the_one_of_the_replication(self, rows: dict[str, dict[str, Any]]) -> None:
        """1.0182740346e-3 after 4,500 starts of its notebook; ours is not above it."""
        for row in rows.values():
            assert row["optimum"] == pytest.approx(1.01827401e-3, rel=1e-7)
            assert row["ratio"] == pytest.approx(row["objective"] / row["optimum"])
        assert rows["besiroglu"]["printed"] > rows["besiroglu"]["optimum"]

    def test_the_published_optimum_was_none(self, rows: dict[str, dict[str, Any]]) -> None:
        """The replication prints E 1.81686 with a standard error of 0.02566: 4.8 of them away."""
        found = rows["hoffmann-digits"]["constants"]["E"]
        assert found["published"] - found["ours"] == pytest.approx(1.69337 - 1.8172, abs=2e-4)
        assert found["standard_error"] == pytest.approx(0.02566, rel=0.25)
        assert found["distance"] == pytest.approx((1.69337 - 1.81722) / found["standard_error"], rel=1e-3)
        sentence = rows["hoffmann-digits"]["sentence"]
        assert sentence.startswith(f"E is {-found['distance']:.1f} standard errors from the optimum; ")
        assert "objective 0.001231 against 0.001018" in sentence

    def test_the_replication_is_one(self, rows: dict[str, dict[str, Any]]) -> None:
        assert rows["besiroglu"]["sentence"].startswith(
            "every constant is within 2 standard errors of the optimum"
        )

    def test_the_nearest_comes_first(self, rows: dict[str, dict[str, Any]]) -> None:
        assert list(rows) == ["besiroglu", "hoffmann-digits", "hoffmann"]


class TestPrintedObjectives:
    """A source that prints its objective is reproduced to the digits of its constants, so the runs are its runs."""

    def test_linear_residuals_of_sparse_vision_transformers(self) -> None:
        [row] = check_published(runs("frantar_vit"), "frantar-vit", bootstraps=0)
        assert row["objective"] == pytest.approx(row["printed"], rel=1e-6)
        assert row["printed"] == pytest.approx(4.929087939147767e-4 * 112)
        assert row["ratio"] == pytest.approx(1, abs=1e-5)
        assert (row["residuals"], row["delta"], row["unit_of_tokens"]) == ("linear", 0.01, "training images")

    def test_sparse_language_models_were_not_at_their_optimum(self) -> None:
        [row] = check_published(runs("frantar_t5"), "frantar-t5", bootstraps=50)
        assert row["objective"] == pytest.approx(row["printed"], rel=1e-6)
        assert row["optimum"] < 0.65 * row["objective"]
        assert abs(row["constants"]["b"]["distance"]) > 3
        assert "b is" in row["sentence"]
        assert row["sentence"].endswith("printed 0.000365 on 48 runs; the optimum is not identified")

    def test_quartet_before_the_longest_runs(self) -> None:
        every = runs("quartet_runs")
        early = every.select(every.tokens_per_param < 1000)
        [row] = check_published(early, "quartet-digits", bootstraps=0)
        assert row["runs"] == row["printed_runs"] == 23
        assert row["objective"] == pytest.approx(1.876208544909919e-6, rel=1e-6)
        [row] = check_published(every, "quartet-later", bootstraps=0)
        assert row["runs"] == 24 + 21 + 22 + 21  # dense, QuEST forward, stochastic backward, both


class TestMultipliers:
    def test_forward_and_backward_by_name(self) -> None:
        [row] = check_published(runs("quartet_runs"), "quartet-later", bootstraps=20)
        assert set(row["multipliers"]) == {"rho[mxfp4-quest]", "rho_D[mxfp4-stochastic]"}
        for found in row["multipliers"].values():
            assert found["ours"] == pytest.approx(found["published"], abs=0.02)
            assert found["standard_error"] > 0
        assert "every multiplier is within 2 standard errors" in row["sentence"]

    def test_a_table_without_constants_is_compared_by_its_multipliers(self) -> None:
        rows = by_fit(check_published(runs("quest_runs"), "decoupled", bootstraps=50))
        table = rows["quest-table2"]
        assert table["objective"] is table["optimum"] is table["ratio"] is None
        assert set(table["multipliers"]) == {f"rho[int{b}-a{b}]" for b in (1, 2, 3, 4, 8)}
        assert table["constants"] == {}
        stored = rows["quest"]
        assert stored["runs"] == 91
        assert stored["delta"] is None  # least squares
        assert 1 < stored["ratio"] < 1.2  # the fit of 104 runs on 91 of them
        assert next(iter(rows)) == "quest"

    def test_the_objective_of_quest_by_hand(self) -> None:
        every = runs("quest_runs")
        keep = np.array([name in ("dense", "int4-a4") for name in every.representation])
        [row] = check_published(every.select(keep), "quest", bootstraps=0)
        kept = every.select(keep)
        rho = np.array([0.691832 if name == "int4-a4" else 1.0 for name in kept.representation])
        predicted = 8.134031 * (kept.params * rho) ** -0.062726522 + 86.411906 * kept.tokens**-0.241288351
        expected = 0.5 * np.sum(np.log((predicted + 0.00142329) / kept.loss) ** 2)
        assert row["objective"] == pytest.approx(expected, rel=1e-9)


class TestOtherLaws:
    def sample(self, **columns: tuple[str, ...]) -> Runs:
        random = np.random.default_rng(1)
        params = np.repeat(np.geomspace(5e7, 1e9, 5), 8)
        tokens = np.tile(np.geomspace(5e9, 2e11, 4), 10)
        group = np.tile([32.0] * 4 + [128.0] * 4, 5)
        error = 0.1582 * tokens**0.0745 * np.log2(group) ** 0.7779 / params**0.2186
        names = tuple(["w4a4", "dense"] * 20)
        dense = 1.9279 + 237.7042 / params**0.3022 + 596.2490 / tokens**0.3022
        loss = dense + np.where(np.array(names) == "w4a4", error, 0.0)
        noisy = loss * np.exp(random.normal(0, 1e-4, 40))
        return Runs(params, tokens, noisy, names, {"group_size": tuple(map(str, group)), **columns})

    def test_an_additive_error_per_precision(self) -> None:
        sample = self.sample()
        [row] = check_published(sample, "qat-error", bootstraps=0)  # the others know the dense runs alone
        assert row["fit"] == "chen-w4a4"
        assert row["runs"] == 40
        assert 1 <= row["ratio"] < 2
        with pytest.raises(RequestError, match="chen-w4a16: no run says anything about g_D, g_G, g_N"):
            check_published(sample, "chen-w4a16", bootstraps=0)

    def test_bits_that_are_no_number_cannot_be_tested(self) -> None:
        with pytest.raises(
            RequestError, match=r"no published fit can be tested .*kumar: weight_bits is 'fp4'"
        ):
            check_published(runs("quest_runs"), "precision", bootstraps=0)

    def test_a_factor_below_zero_says_nothing(self) -> None:
        """Three bits of inputs under the published offsets."""
        sample = self.sample(input_bits=("3",) * 40)
        with pytest.raises(RequestError, match="kumar: it can speak of 0 of these runs"):
            check_published(sample, "kumar", bootstraps=0)


class TestRequests:
    def test_columns_that_runs_lack(self) -> None:
        with pytest.raises(RequestError, match="capybara: the runs have no column 'exponent_bits'") as caught:
            check_published(runs("frantar_t5"), "floating-point")
        assert "add the columns that a law reads" in str(caught.value)

    def test_names_that_do_not_exist(self) -> None:
        with pytest.raises(RequestError, match="is called 'hofmann'; did you mean 'hoffmann'"):
            check_published(runs("frantar_t5"), "hofmann")

    def test_no_format_in_common(self) -> None:
        dense = runs("chinchilla_runs")
        with pytest.raises(
            RequestError, match="quest-table2: it does not publish E, A, alpha, B, beta, and has"
        ):
            check_published(dense, "quest-table2", bootstraps=0)

    def test_too_few_runs(self) -> None:
        every = runs("quartet_runs")
        other = replace(every, representation=("other",) * len(every))
        with pytest.raises(RequestError, match="it can speak of 0 of these runs, which is too few"):
            check_published(other, "hoffmann", bootstraps=0)

    def test_a_table_has_the_sentence_last(self) -> None:
        rows = check_published(runs("chinchilla_runs"), "besiroglu", bootstraps=0)
        [cells] = check_table(rows)
        assert len(cells) == len(HEADINGS)
        assert cells[:3] == ["besiroglu", "chinchilla", "240 of 240"]
        assert cells[-1] == rows[0]["sentence"]
        assert rows[0]["constants"]["E"]["distance"] is None  # no draws, no standard error
