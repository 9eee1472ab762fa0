"""Fits: intervals that hold, outcomes that say what to do, composition, predictions and documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares

from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.bootstrap import resampled, strata
from rhoc.runtime.laws.compose import PUBLISHED_RESIDUALS, Composition, compose
from rhoc.runtime.laws.fit import fit
from rhoc.runtime.laws.grid import profile_map
from rhoc.runtime.laws.identify import noise_variance, profile
from rhoc.runtime.laws.newton import minimise
from rhoc.runtime.laws.objective import Objective
from rhoc.runtime.laws.outcome import Findings, Outcome, Unidentified
from rhoc.runtime.laws.predict import predict
from rhoc.runtime.laws.result import Fit
from rhoc.runtime.laws.runs import Runs
from rhoc.runtime.laws.terms import Terms

from .simulated import RHO, TRUTH, huber, simulated, with_errors

DATA = Path(__file__).parent / "data" / "quest_runs.csv"

# the fit of all 104 runs stored in the notebook of QuEST (arXiv 2502.05003)
QUEST = {
    "int1": 0.138420,
    "int2": 0.413717,
    "int3": 0.653059,
    "int4": 0.840434,
    "int1-a1": 0.020505,
    "int2-a2": 0.151871,
    "int3-a3": 0.433126,
    "int4-a4": 0.691832,
    "int8-a8": 1.016193,
    "fp4-a4": 0.629639,
    "int4-2of4pairs-a4": 0.381222,
    "int1-a1-nohadamard": 0.015577,
    "int2-a2-nohadamard": 0.078412,
    "int3-a3-nohadamard": 0.322108,
    "int4-a4-nohadamard": 0.603271,
    "int8-a8-nohadamard": 0.937629,
}


@pytest.fixture(scope="module")
def quest_runs() -> Runs:
    return read_runs(DATA, "QuEST, Llama-style decoders on C4")


@pytest.fixture(scope="module")
def quest(quest_runs: Runs) -> Fit:
    return fit(quest_runs, find_law("decoupled"))


@pytest.fixture(scope="module")
def small() -> Fit:
    return fit(simulated(0), find_law("decoupled"), bootstraps=200)


class TestQuest:
    """91 real runs; the published multipliers are of the full set of 104."""

    def test_every_multiplier_is_within_two_standard_deviations(self, quest: Fit) -> None:
        assert set(QUEST) == set(quest.rho) - {"dense"}
        off = {n: (QUEST[n] - quest.rho[n].value) / quest.rho[n].standard_error for n in QUEST}
        assert max(abs(value) for value in off.values()) < 2, off

    def test_exponents_are_near_the_published_ones(self, quest: Fit) -> None:
        assert quest.values["alpha"] == pytest.approx(0.0627, abs=0.004)
        assert quest.values["beta"] == pytest.approx(0.2413, abs=0.06)

    def test_e_is_not_identified_because_tokens_per_parameter_hardly_vary(self, quest: Fit) -> None:
        assert quest.outcome is Outcome.NOT_IDENTIFIED
        assert (
            "E is not identified because D/N hardly varies: 67 of 91 runs have D/N near 98.4" in quest.message
        )
        assert "runs at other D/N" in quest.message
        assert "alpha is not identified" not in quest.message

    def test_the_profile_behind_that_statement(self, quest_runs: Runs, quest: Fit) -> None:
        """scipy's refits at fixed E find the same rise of the objective, and none below the optimum."""
        names = list(quest.rho)
        group = np.array([names.index(name) for name in quest_runs.representation])
        size, data = np.log(quest_runs.params / 1e8), np.log(quest_runs.tokens / 1e10)
        terms = Terms(find_law("decoupled"), quest_runs)
        objective = Objective(terms, quest_runs.loss, 1e-3)
        solution = minimise(objective, profile_map(objective).starts(), np.ones((1, 91)), iterations=1000)
        point = solution.points[np.argmin(solution.values)]
        allowed = 0.5 * 3.8415 * noise_variance(objective, point)
        measured = profile(objective, point, 0, allowed)
        assert measured.low == 0.0
        assert 0.03 < measured.high < 0.5

        def residual(p: np.ndarray) -> np.ndarray:
            value = measured.high + p[0] * np.exp(-p[2] * data) + p[3:][group] * np.exp(-p[1] * size)
            return np.log(value) - np.log(quest_runs.loss)

        start = np.concatenate([[0.5, 0.07, 0.2], np.full(len(names), 2.5)])
        bounds = ([0.01] * (len(names) + 3), [5.0] * (len(names) + 3))
        found = least_squares(residual, start, bounds=bounds, loss="huber", f_scale=1e-3, max_nfev=400)
        assert huber(residual(found.x), 1e-3).sum() - quest.objective == pytest.approx(allowed, rel=0.1)

    def test_the_reason_is_found_in_the_data_and_not_assumed(self, quest_runs: Runs) -> None:
        """The same law on runs with spread D/N and sizes names no such reason."""
        spread = fit(simulated(0), find_law("decoupled"), bootstraps=0)
        assert "D/N" not in spread.message.partition("compare laws")[0]
        one = simulated(0).select(np.isclose(simulated(0).tokens_per_param, 30))
        found = fit(one, find_law("decoupled"), bootstraps=0)
        assert "D/N hardly varies: 12 of 12 runs have D/N near 30" in found.message

    def test_multipliers_barely_depend_on_e(self, quest_runs: Runs, quest: Fit) -> None:
        """What the message says: inside E's interval multipliers move by less than their errors."""
        objective = Objective(Terms(find_law("decoupled"), quest_runs), quest_runs.loss, 1e-3)
        start = profile_map(objective).starts()[:3]
        start[:, 0] = 0.1
        fixed = np.zeros(start.shape, dtype=bool)
        fixed[:, 0] = True
        solution = minimise(objective, start, np.ones((1, 91)), fixed=fixed, iterations=1000)
        best = solution.points[[np.argmin(solution.values)]]
        reading = objective.terms.read(best[:, :19], best[:, 19:])
        for name, value in reading.rho.items():
            assert abs(value[0] - quest.rho[name].value) <= quest.rho[name].standard_error


class TestIntervals:
    def test_they_cover_the_truth(self) -> None:
        """60 simulated studies: at least 85 % of nominal 95 % intervals hold the truth, of every quantity."""
        hits: dict[str, int] = {}
        for seed in range(60):
            found = fit(simulated(100 + seed), find_law("decoupled"), bootstraps=100, seed=seed)
            truth = {**TRUTH, **{f"rho of {n}": v for n, v in RHO.items() if n != "dense"}}
            intervals = {n: e.interval for n, e in found.parameters.items()}
            intervals |= {f"rho of {n}": e.interval for n, e in found.rho.items()}
            intervals["one more run"] = predict(
                found, Composition(found.multiplier("int4"), ()), 5e8, 9e9
            ).loss_interval
            law = 1.7 + 400 * (5e8 * 0.85) ** -0.34 + 410 * 9e9**-0.28
            truth["one more run"] = law * np.exp(np.random.default_rng(seed).normal(0, 0.002))
            for name, value in truth.items():
                low, high = intervals[name]
                hits[name] = hits.get(name, 0) + (low <= value <= high)
        assert min(hits.values()) >= 0.85 * 60, hits
        assert len(hits) == 8

    def test_draws_keep_every_representation_and_every_run_counts_alike(self) -> None:
        runs = simulated(0)
        groups = strata(runs, Terms(find_law("decoupled"), runs).index)
        weights = resampled(groups, len(runs), 4000, seed=1)
        for name in runs.names:
            own = weights[:, [other == name for other in runs.representation]]
            np.testing.assert_allclose(own.sum(axis=1), own.shape[1])
        np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.06)
        np.testing.assert_allclose(weights.var(axis=0), 1.0, atol=0.15)  # not (m - 1)/m

    def test_the_only_run_of_a_representation_is_never_left_out(self) -> None:
        runs = simulated(0)
        lone = runs.select(np.array([n != "int2" or i == 2 for i, n in enumerate(runs.representation)]))
        groups = strata(lone, Terms(find_law("decoupled"), lone).index)
        weights = resampled(groups, len(lone), 50, seed=0)
        assert (weights[:, lone.representation.index("int2")] == 1).all()
        assert (
            "leave out the noise of representations with one run: int2"
            in fit(lone, find_law("decoupled"), bootstraps=50).message
        )

    def test_a_covariance_agrees_with_its_draws(self, small: Fit) -> None:
        document = small.to_document()
        names, matrix = document["covariance"]["names"], np.array(document["covariance"]["matrix"])
        errors = document["standard_error"]
        for i, name in enumerate(names[:5]):
            assert np.sqrt(matrix[i, i]) == pytest.approx(errors[name], rel=1e-5)
        multiplier = small.multiplier("int4")
        i, j = names.index("rho[int4]"), names.index("alpha")
        assert multiplier.covariance["alpha"] == pytest.approx(matrix[i, j], rel=1e-4)


class TestOutcomes:
    def test_converged(self, small: Fit) -> None:
        assert small.outcome is Outcome.CONVERGED
        assert small.message.startswith(
            "7 parameters from 36 runs, at the global optimum (below all 784 cells"
        )

    def test_too_few_runs(self) -> None:
        found = fit(simulated(0).select(np.arange(36) < 7), find_law("decoupled"))
        assert found.outcome is Outcome.TOO_FEW_RUNS
        assert found.message.startswith("7 runs for 7 parameters; at least 9 are needed; add runs")
        assert found.parameters["E"].interval is None
        with pytest.raises(RequestError, match="supports no prediction: 7 runs for 7 parameters"):
            found.multiplier("int4")

    def test_at_bound(self) -> None:
        steep = {**TRUTH, "A": 4e17, "alpha": 2.5}
        sizes, ratios = (1e7, 2e7, 4e7, 8e7, 3e8, 1e9), (10.0, 30.0, 100.0, 300.0)
        found = fit(
            simulated(0, truth=steep, sizes=sizes, ratios=ratios), find_law("decoupled"), bootstraps=0
        )
        assert found.outcome is Outcome.AT_BOUND
        assert found.message.startswith("at a bound: alpha = 2; a value at a bound is a limit")

    def test_a_known_zero_is_at_a_bound_and_not_unidentified(self) -> None:
        truth = {"E": 0.0, "A": 20.0, "alpha": 0.1, "B": 30.0, "beta": 0.2}
        runs = simulated(0, truth=truth, sizes=(1e6, 1e7, 1e8, 1e9), noise=0.001)
        found = fit(runs, find_law("decoupled"), bootstraps=0)
        assert found.outcome is Outcome.AT_BOUND
        assert "at a bound: E = 0" in found.message

    def test_a_multiplier_at_its_bound_is_named(self) -> None:
        runs = simulated(0)
        better = np.where(np.array(runs.representation) == "int4", 0.7, 1.0)
        found = fit(replace(runs, loss=runs.loss * better), find_law("decoupled"), bootstraps=0)
        assert "rho of int4 = 100" in found.message

    @pytest.mark.parametrize(
        ("runs", "words"),
        [
            (
                simulated(1, sizes=(1e8,), ratios=(5, 10, 20, 40, 80, 160)),
                "alpha is not identified because sizes do not vary",
            ),
            (
                replace(simulated(2, ratios=(30.0,)), tokens=np.full(12, 3e9)),
                "beta is not identified because values of D do",
            ),
        ],
    )
    def test_not_identified(self, runs: Runs, words: str) -> None:
        found = fit(runs, find_law("decoupled"), bootstraps=0)
        assert found.outcome is Outcome.NOT_IDENTIFIED
        assert words in found.message

    def test_a_shape_from_one_error_is_not_identified(self) -> None:
        runs = with_errors(1)
        keep = np.isin(runs.representation, ["dense", "int2"])
        found = fit(runs.select(keep), find_law("representation"), bootstraps=0)
        assert "C is not identified because there are only 1 levels of GMSE" in found.message

    def test_not_converged(self) -> None:
        found = fit(simulated(0), find_law("decoupled"), bootstraps=0, iterations=1)
        assert found.outcome is Outcome.NOT_CONVERGED
        assert found.message.startswith("the solver ran out of iterations; look at the runs with the")

    def test_the_gravest_finding_decides(self) -> None:
        doubt = Unidentified("E", 0.0, 1.0, (), ())
        findings = Findings(30, 7, True, True, unidentified=[doubt], at_bound=["beta = 2"])
        assert findings.outcome is Outcome.NOT_IDENTIFIED
        assert "E is not identified because the runs are too few, or too noisy" in findings.message
        assert "at a bound: beta = 2" in findings.message
        assert replace(findings, global_minimum=False).outcome is Outcome.NOT_CONVERGED
        assert "a grid cell is better" in replace(findings, global_minimum=False).message
        assert all(outcome.advice for outcome in Outcome)

    def test_refusals(self) -> None:
        runs = simulated(0)
        with pytest.raises(RequestError, match="there are no runs to fit"):
            fit(runs.select(np.zeros(36, dtype=bool)), find_law("decoupled"))
        with pytest.raises(
            RequestError, match=r"no run is of the baseline representation 'bf16'.*one of dense, int2, int4"
        ):
            fit(runs, find_law("decoupled", {"baseline": "bf16"}))
        with pytest.raises(RequestError, match="the runs have no column 'gmse_weight'"):
            fit(runs, find_law("representation"))
        with pytest.raises(RequestError, match="delta is 0"):
            fit(runs, find_law("decoupled"), delta=0.0)
        with pytest.raises(RequestError, match="run 3: loss is -1"):
            replace(runs, loss=np.where(np.arange(36) == 2, -1.0, runs.loss))
        flat = replace(runs, columns={"gmse_weight": ("0",) * 36})
        with pytest.raises(RequestError, match="no run says anything about F, C of the representation law"):
            fit(flat, find_law("representation"))
        with pytest.raises(RequestError, match=r"run 1: gmse_weight is 1, not from 0 to below 1"):
            fit(replace(runs, columns={"gmse_weight": ("1",) * 36}), find_law("representation"))
        mixed = tuple(
            "0" if n == "dense" else str(0.01 * (i % 2 + 1)) for i, n in enumerate(runs.representation)
        )
        with pytest.raises(RequestError, match="'int2' has runs with different gmse_weight"):
            fit(replace(runs, columns={"gmse_weight": mixed}), find_law("representation"))


class TestComposition:
    def test_a_product_with_its_joint_interval(self, small: Fit) -> None:
        product = compose([small.multiplier("int4"), small.multiplier("int2")], "int2-int4").multiplier
        assert product.value == pytest.approx(small.rho["int4"].value * small.rho["int2"].value)
        joint = small.draws.column("rho[int4]") * small.draws.column("rho[int2]")
        np.testing.assert_allclose(product.interval, np.quantile(joint, [0.025, 0.975]))
        assert product.composed_of == ("int4", "int2")
        document = compose([small.multiplier("int4"), small.multiplier("int2")]).to_document()
        assert document["composition"]["published_residual"] == 0.096
        assert len(document["composition"]["published_residuals"]) == len(PUBLISHED_RESIDUALS)

    def test_multipliers_of_different_fits_do_not_compose(self, small: Fit, quest: Fit) -> None:
        with pytest.raises(
            RequestError, match="come from different fits, so their multipliers do not compose"
        ) as caught:
            compose([small.multiplier("int4"), quest.multiplier("int2")])
        assert "fit one law to the runs of both together" in caught.value.advice
        assert "alpha 0.0649" in str(caught.value)
        with pytest.raises(RequestError, match="comes from another fit"):
            predict(small, Composition(quest.multiplier("int4"), ()), 1e8, 1e10)

    def test_refits_of_other_data_count_as_other_fits(self, small: Fit) -> None:
        other = fit(simulated(1), find_law("decoupled"), bootstraps=50)
        with pytest.raises(RequestError, match="different fits"):
            compose([small.multiplier("int4"), other.multiplier("int2")])

    def test_nothing_to_compose(self) -> None:
        with pytest.raises(RequestError, match="no multiplier to compose"):
            compose([])

    def test_a_multiplier_carries_what_it_means_nothing_without(self, small: Fit) -> None:
        document = small.multiplier("int4").to_document()
        origin = document["rho_origin"]
        assert origin["law"] == "decoupled"
        assert set(origin["exponents"]) == set(TRUTH)
        assert "non-embedding" in origin["unit_of_params"]
        assert origin["data"] == "simulated runs"
        assert set(document["covariance"]) == {*TRUTH, "rho"}

    def test_the_price_of_an_error_that_has_no_runs(self) -> None:
        found = fit(with_errors(0), find_law("representation"), bootstraps=50)
        priced = found.priced("int6", {"gmse_weight": 1.04e-3})
        assert priced.value == pytest.approx(np.tanh(0.41 * -np.log(1.04e-3) / np.log(4)) ** 1.39, abs=0.02)
        low, high = priced.interval
        assert low < priced.value < high
        with pytest.raises(RequestError, match="prices only the representations it was fitted to"):
            fit(simulated(0), find_law("decoupled"), bootstraps=50).priced("int6", {"gmse_weight": 1e-3})


class TestPrediction:
    def test_loss_and_its_interval(self, small: Fit) -> None:
        found = predict(small, Composition(small.multiplier("int4"), ()), 2e8, 6e9)
        assert found.loss == pytest.approx(1.7 + 400 * (2e8 * 0.85) ** -0.34 + 410 * 6e9**-0.28, rel=2e-3)
        low, high = found.loss_interval
        assert low < found.loss < high
        assert high - low > 2 * 1.96 * 0.0015 * found.loss  # the noise of one run is in it
        assert found.effective_parameters == pytest.approx(2e8 * small.rho["int4"].value)
        assert "residual noise" in found.to_document()["loss_interval_note"]
        json.dumps(found.to_document(), allow_nan=False)

    def test_distance_from_the_data(self, small: Fit) -> None:
        dense = Composition(small.multiplier("dense"), ())
        assert predict(small, dense, 2e8, 6e9).extrapolation.inside
        far = predict(small, dense, 1e10, 9e11).extrapolation
        assert not far.inside
        assert far.log10_params == pytest.approx(1.0)
        assert far.log10_tokens == pytest.approx(1.0)
        assert far.log10_tokens_per_param == 0.0
        assert predict(small, dense, 3e6, 3e9).extrapolation.log10_params == pytest.approx(1.0)

    def test_far_predictions_are_less_certain(self, small: Fit) -> None:
        dense = Composition(small.multiplier("dense"), ())
        near, far = (predict(small, dense, n, 30 * n).loss_interval for n in (3e8, 3e11))
        assert far[1] - far[0] > near[1] - near[0]

    @pytest.mark.parametrize("budget", [(0.0, 1e9), (1e8, float("nan")), (-1.0, 1.0)])
    def test_impossible_budgets(self, small: Fit, budget: tuple[float, float]) -> None:
        with pytest.raises(RequestError, match="not a positive finite number"):
            predict(small, Composition(small.multiplier("dense"), ()), *budget)


class TestDocument:
    def test_round_trip(self, quest: Fit) -> None:
        text = json.dumps(quest.to_document(), allow_nan=False)
        again = Fit.from_document(json.loads(text))
        assert json.dumps(again.to_document()) == text
        assert again.origin == quest.origin
        np.testing.assert_array_equal(again.draws.values, quest.draws.values)
        pair = [
            predict(f, compose([f.multiplier("int4"), f.multiplier("int2")]), 1e8, 1e10)
            for f in (quest, again)
        ]
        assert pair[0].to_document() == pair[1].to_document()

    def test_keys_are_a_contract(self, quest: Fit) -> None:
        document = quest.to_document(draws=False)
        wanted = (
            "law parameters standard_error interval objective rms_log_error n_runs bic outcome message rho"
        )
        assert set(wanted.split()) <= set(document)
        assert set(document["rho"]["int4"]) == {"value", "interval", "standard_error"}
        assert document["n_runs"] == 91
        assert document["outcome"] == "not_identified"
        assert document["delta"] == 1e-3
        residuals = np.array(document["residuals"])
        assert document["rms_log_error"] == pytest.approx(np.sqrt((residuals**2).mean()))
        assert document["bic"] == pytest.approx(91 * np.log((residuals**2).mean()) + 21 * np.log(91))
        assert len(json.dumps(document)) < 100_000

    def test_what_is_no_fit(self, small: Fit) -> None:
        with pytest.raises(RequestError, match=r"x\.json: this document has no bootstrap draws"):
            Fit.from_document(small.to_document(draws=False), "x.json")
        with pytest.raises(RequestError, match="version 7 cannot be read"):
            Fit.from_document({**small.to_document(), "version": 7})
        broken = {**small.to_document(), "parameters": {"E": "much"}}
        with pytest.raises(RequestError, match="not a fit document"):
            Fit.from_document(broken)
        with pytest.raises(RequestError, match="no law is called 'kaplam'"):
            Fit.from_document({**small.to_document(), "law": "kaplam"})
