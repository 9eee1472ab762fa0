"""Selection of a law: by forecasts first, by BIC next, on planted and on public runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.fit import fit
from rhoc.runtime.laws.holdout import forecast_errors, steps_of
from rhoc.runtime.laws.runs import Runs
from rhoc.runtime.laws.select import Selection, select, unfit

from .planted_laws import PLANTED
from .public_runs import named_runs
from .simulated import simulated

LADDER = {"sizes": (3e7, 1e8, 3e8, 1e9, 3e9), "ratios": (10.0, 30.0, 100.0, 300.0)}


def planted(name: str, noise: float = 1e-3) -> Runs:
    return next(case for case in PLANTED if case.law == name).runs(0, noise)


@pytest.fixture(scope="module")
def quest() -> Selection:
    laws = [find_law(name) for name in ("decoupled", "gamma")]
    return select(read_runs(named_runs("quest_runs")), laws, bootstraps=0)


@pytest.fixture(scope="module")
def ladder() -> Selection:
    return select(read_runs(named_runs("olmo_ladder")), bootstraps=20)


class TestSteps:
    def test_the_largest_budgets_are_left_out(self) -> None:
        runs = simulated(0, **LADDER)
        budget = 6 * runs.params * runs.tokens
        one, two = steps_of(runs)
        assert (one.steps, two.steps) == (1, 2)
        for step in (one, two):
            assert budget[step.held].min() > budget[~step.held].max()
            assert step.held.sum() >= 3 * step.steps
            assert step.flops == budget[step.held].min()
        assert one.held.sum() < two.held.sum() <= len(runs) / 2

    def test_no_step_leaves_less_than_half_of_the_runs(self) -> None:
        runs = simulated(0, sizes=(1e8,), ratios=(30.0,))
        assert steps_of(runs) == ()

    def test_forecasts_are_those_of_a_fit_to_the_others(self) -> None:
        """Against predictions of `fit`, by the formula written out."""
        runs = simulated(0, **LADDER)
        step = steps_of(runs)[0]
        errors = forecast_errors(runs, find_law("decoupled"), step, delta=1e-3)
        kept = fit(runs.select(~step.held), find_law("decoupled"), bootstraps=0)
        p = kept.values
        rho = np.array([kept.rho[name].value for name in runs.representation])
        loss = p["E"] + p["A"] * (runs.params * rho) ** -p["alpha"] + p["B"] * runs.tokens ** -p["beta"]
        np.testing.assert_allclose(errors[step.held], np.log(loss / runs.loss)[step.held], atol=1e-7)
        assert np.isnan(errors[~step.held]).all()

    def test_a_kind_of_run_that_only_large_budgets_have_is_not_forecast(self) -> None:
        runs = simulated(0, **LADDER)
        step = steps_of(runs)[0]
        names = list(runs.representation)
        names[int(np.flatnonzero(step.held)[0])] = "late"
        errors = forecast_errors(
            replace(runs, representation=tuple(names)), find_law("decoupled"), step, delta=1e-3
        )
        assert np.isnan(errors).sum() == len(runs) - step.held.sum() + 1


class TestPlanted:
    def test_the_planted_law_is_chosen(self) -> None:
        laws = [find_law(name) for name in ("decoupled", "qat-error", "gamma")]
        for name in ("decoupled", "gamma"):
            runs = planted(name, 5e-4)
            runs = runs.select(np.array(runs.columns.get("backward", ("dense",) * len(runs))) == "dense")
            found = select(runs, laws if name == "decoupled" else laws[::2], bootstraps=0)
            assert found.law.name == name, found.reason
            assert found.reason.startswith(name)

    def test_averages_weigh_by_forecasts(self) -> None:
        found = select(planted("decoupled"), [find_law("decoupled"), find_law("gamma")], bootstraps=10)
        weights = np.array([each.weight for each in found.candidates])
        scores = np.array([each.forecast for each in found.candidates])
        assert weights.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(weights / weights[0], (scores[0] / scores) ** 2)
        law = 1.7 + 400 * (2e9 * 0.85) ** -0.34 + 410 * 6e10**-0.28
        assert found.loss(2e9, 6e10, "dense") == pytest.approx(
            1.7 + 400 * 2e9**-0.34 + 410 * 6e10**-0.28, rel=5e-3
        )
        chosen = found.candidates[0].fit
        assert chosen.loss(2e9, 6e10, chosen.rho["int4"].value) == pytest.approx(law, rel=5e-3)
        single = replace(found, candidates=(replace(found.candidates[0], weight=1.0),))
        assert single.loss(2e9, 6e10, "int4") == pytest.approx(
            chosen.loss(2e9, 6e10, chosen.rho["int4"].value)
        )

    def test_laws_that_the_runs_cannot_support_have_a_reason(self) -> None:
        dense = select(planted("chinchilla"), bootstraps=0)
        assert dense.refused["decoupled"] == "the same as chinchilla on these runs"
        assert dense.refused["precision"] == "the runs have no column weight_bits or input_bits or kv_bits"
        chinchilla = find_law("chinchilla")
        assert "does not tell the 3 representations" in unfit(chinchilla, planted("decoupled"))
        named = select(
            planted("decoupled"), [find_law("decoupled"), find_law("representation")], bootstraps=0
        )
        assert named.refused["representation"] == "the runs have no column 'gmse_weight'"
        assert named.reason == "decoupled, the only law that these runs support"

    def test_none(self) -> None:
        runs = planted("decoupled").select(np.arange(48) < 4)
        with pytest.raises(
            RequestError, match=r"no law can be fitted to these runs \(.*decoupled: 4 runs for"
        ):
            select(runs)

    def test_too_few_runs_to_forecast(self) -> None:
        runs = planted("chinchilla").select(np.arange(16) % 4 < 2).select(np.arange(8) > 0)
        found = select(runs, [find_law("chinchilla"), find_law("kaplan")], bootstraps=0)
        assert found.candidates[0].forecast is None
        assert "too few runs to test forecasts" in found.reason
        assert sum(each.weight for each in found.candidates) == pytest.approx(1.0)


class TestPublic:
    """Finding 3 of the survey of fits: the outer exponent wins in sample, and mostly out of it."""

    @pytest.mark.slow
    def test_quest(self, quest: Selection) -> None:
        gamma, decoupled = quest.candidates
        assert quest.law.name == "gamma"
        assert gamma.fit.bic < decoupled.fit.bic - 20
        assert max(gamma.forecast, decoupled.forecast) < 0.01
        assert quest.reason.startswith("gamma forecasts the largest runs to 0.65 %, level with decoupled")

    def test_the_ladder(self, ladder: Selection) -> None:
        by_name = {each.law.name: each for each in ladder.candidates}
        assert ladder.law.name == "gamma"
        assert by_name["gamma"].fit.bic < by_name["chinchilla"].fit.bic - 36
        assert by_name["gamma"].forecast < 1.25 * by_name["chinchilla"].forecast
        assert by_name["kaplan"].forecast > 2 * by_name["gamma"].forecast
        assert len(ladder.fit.draws) == 20

    def test_document(self, ladder: Selection) -> None:
        document = ladder.to_document()
        json.dumps(document, allow_nan=False)
        assert document["laws"][0]["law"] == document["law"] == "gamma"
        assert [step["runs_left_out"] for step in document["steps"]] == [4, 8]
