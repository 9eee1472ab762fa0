"""Which runs to train next: expected errors against simulated refits, choices against brute force, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import pytest

from rhoc.compiler.questions.design import design as ask
from rhoc.compiler.questions.design import target_of
from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.candidates import best_additions, candidates
from rhoc.runtime.laws.design import Everything, LossAt, Named, Per, Target, design
from rhoc.runtime.laws.fit import fit
from rhoc.runtime.laws.identify import noise_variance, profile
from rhoc.runtime.laws.information import extended, information, joined, optimum
from rhoc.runtime.laws.newton import descend
from rhoc.runtime.laws.objective import Objective
from rhoc.runtime.laws.runs import Runs
from rhoc.runtime.laws.terms import Terms

from .planted_laws import PLANTED, Planted
from .public_runs import named_runs
from .simulated import RHO, TRUTH, simulated

DECOUPLED = find_law("decoupled")


def truth(runs: Runs) -> np.ndarray:
    """The losses of the planted law, without noise."""
    effective = runs.params * np.array([RHO[name] for name in runs.representation])
    size = TRUTH["A"] * effective ** -TRUTH["alpha"]
    return TRUTH["E"] + size + TRUTH["B"] * runs.tokens ** -TRUTH["beta"]


def solved(runs: Runs, law: str = "decoupled") -> tuple[Objective, np.ndarray]:
    objective = Objective(Terms(find_law(law), runs), runs.loss, 1e-3)
    return objective, optimum(objective)


class TestInformation:
    @pytest.mark.parametrize("case", PLANTED, ids=lambda case: case.law)
    def test_a_solution_over_more_runs_is_the_same_solution(self, case: Planted) -> None:
        runs = case.runs()
        objective = Objective(Terms(find_law(case.law), runs), runs.loss, 1e-3)
        low, high = objective.bounds
        point = np.where(np.isfinite(high), 0.7 * low + 0.3 * np.where(np.isfinite(high), high, 0.0), 1.1)
        wide, moved = extended(objective, point, candidates(runs, find_law(case.law)))
        before, after = objective.predict(point[None])[0], wide.predict(moved[None])[0][: len(runs)]
        np.testing.assert_allclose(after, before, rtol=1e-9)

    def test_gradients_agree_with_differences_of_refits(self) -> None:
        """A step of the loss along a coefficient moves what is read by its gradient times the step."""
        runs = simulated(0)
        objective, point = solved(runs)
        known = information(objective, point, runs)
        count = len(objective.terms.coefficients)
        for name in ("E", "A", "alpha", "beta", "rho[int4]"):
            step = 1e-4 * np.random.default_rng(1).normal(size=len(point)) * np.abs(point)
            moved = known.point + step
            read = known.objective.terms.read(moved[None, :count], moved[None, count:])
            values = read.parameters | {f"rho[{k}]": v for k, v in read.rho.items()}
            assert float(values[name][0]) - known.value(name) == pytest.approx(
                known.gradient(name) @ step, rel=2e-2
            )

    def test_nothing_is_known_of_what_no_run_varies(self) -> None:
        runs = simulated(1, sizes=(1e8,), ratios=(5, 10, 20, 40, 80, 160))
        objective, _ = solved(runs)
        point = np.array([1.7, 0.7, 0.8, 0.9, 1.4, 0.34, 0.28])[: objective.size]
        known = information(objective, point, runs)
        assert known.standard_error(known.gradient("alpha")) == np.inf
        assert known.standard_error(known.gradient("beta")) < 0.1


class TestExpectedErrors:
    """Before and after, the expected standard error is the spread of refits to simulated losses."""

    @pytest.mark.parametrize(
        "target", [Named("alpha"), Named("E"), Named("rho[int4]"), LossAt(1e10, 1e12, "int4")]
    )
    def test_they_are_what_simulation_finds(self, target: Target) -> None:
        noise, draws = 0.002, 400
        runs = simulated(0, noise=noise, ratios=(10.0, 20.0, 30.0, 60.0))
        runs = replace(runs, loss=truth(runs))  # so that the design is made at the truth
        found = design(replace(runs, loss=simulated(0, noise=noise, ratios=(10.0, 20.0, 30.0, 60.0)).loss), DECOUPLED,
                       target, count=3, delta=1.0)  # fmt: skip
        extra = [(run.params, run.tokens, run.representation) for run in found.runs]
        added = Runs(
            np.array([e[0] for e in extra]), np.array([e[1] for e in extra]), np.ones(3), tuple(e[2] for e in extra)
        )  # fmt: skip
        wide = joined(runs, replace(added, loss=truth(added)))
        spreads = [self._spread(these, target, noise, draws) for these in (runs, wide)]
        assert found.before is not None
        assert found.after is not None
        assert found.after < 0.9 * found.before
        # the noise is estimated from 48 runs (10 %), the spread from 400 draws (3.5 %)
        assert found.before == pytest.approx(spreads[0], rel=0.3)
        assert found.after / found.before == pytest.approx(spreads[1] / spreads[0], rel=0.15)

    def _spread(self, runs: Runs, target: Target, noise: float, draws: int) -> float:
        errors = np.random.default_rng(7).normal(0, noise, (draws, len(runs)))
        terms = Terms(DECOUPLED, runs)
        start = optimum(Objective(terms, runs.loss, 1.0))
        objective = Objective(terms, runs.loss * np.exp(errors), 1.0)
        points = descend(objective, np.repeat(start[None], draws, axis=0), np.ones((1, len(runs)))).points
        count = len(terms.coefficients)
        read = terms.read(points[:, :count], points[:, count:])
        if isinstance(target, LossAt):
            p = read.parameters
            rho = read.rho[target.representation]
            size = p["A"] * (target.params * rho) ** -p["alpha"]
            return float((p["E"] + size + p["B"] * target.tokens ** -p["beta"]).std())
        values = read.parameters | {f"rho[{k}]": v for k, v in read.rho.items()}
        return float(values[target.name].std())

    def test_they_agree_with_the_bootstrap_where_noise_is_alike(self) -> None:
        runs = simulated(3, sizes=(3e7, 6e7, 1e8, 2e8, 3e8, 6e8, 1e9), ratios=(10.0, 20.0, 40.0, 80.0))
        drawn = fit(runs, DECOUPLED, bootstraps=400)
        for name in ("E", "alpha", "beta"):
            before = design(runs, DECOUPLED, Named(name)).before
            assert before == pytest.approx(drawn.parameters[name].standard_error, rel=0.35)
        before = design(runs, DECOUPLED, Named("rho[int2]")).before
        assert before == pytest.approx(drawn.rho["int2"].standard_error, rel=0.35)


class TestChoice:
    def test_pairs_are_nearly_the_best_of_all_pairs(self) -> None:
        runs = simulated(0)
        objective, point = solved(runs)
        offered = candidates(runs, DECOUPLED, formats=("dense",))
        known = information(objective, point, offered)
        for name in ("E", "beta"):
            gradient = known.gradient(name)
            chosen = best_additions(known, gradient[None], 2)
            sample = range(0, len(offered), 3)
            every = [
                known.standard_error(gradient, pair) for pair in combinations_with_replacement(sample, 2)
            ]
            assert known.standard_error(gradient, chosen) <= 1.02 * min(every)

    def test_all_parameters_at_once_shrink_the_determinant(self) -> None:
        runs = simulated(0)
        found = design(runs, DECOUPLED, Everything(), count=2)
        assert found.before is None
        assert found.after is None
        objective, point = solved(runs)
        known = information(objective, point, candidates(runs, DECOUPLED))
        rows = [
            next(
                i
                for i, (n, d, r) in enumerate(
                    zip(*(getattr(known.objective.terms.runs, c)[36:] for c in ("params", "tokens", "representation")),
                        strict=True)
                )
                if (n, d, r) == (run.params, run.tokens, run.representation)
            )
            for run in found.runs
        ]  # fmt: skip
        after = known.matrix + known.rows[rows].T @ known.rows[rows]
        ratio = np.sqrt(np.linalg.det(known.matrix / after.max()) / np.linalg.det(after / after.max()))
        assert found.volume == pytest.approx(ratio, rel=1e-3)
        others = np.random.default_rng(0).integers(0, len(known.rows), (200, 2))
        for pair in others:
            other = known.matrix + known.rows[pair].T @ known.rows[pair]
            assert np.linalg.slogdet(other)[1] <= np.linalg.slogdet(after)[1] + 1e-6

    def test_per_flop_prefers_cheap_runs(self) -> None:
        runs = simulated(0)
        by_run, by_flop = (design(runs, DECOUPLED, Named("alpha"), per=per) for per in Per)
        assert sum(r.flops for r in by_flop.runs) < sum(r.flops for r in by_run.runs)
        assert by_run.after < by_flop.after < by_flop.before

    def test_candidates_keep_to_compute_and_formats(self) -> None:
        runs = simulated(0)
        offered = candidates(runs, DECOUPLED, flops=1e18, formats=("int2",))
        assert set(offered.representation) == {"int2"}
        assert (6 * offered.params * offered.tokens).max() <= 1e18
        with pytest.raises(RequestError, match="no run of at most 1 FLOPs is near these runs"):
            candidates(runs, DECOUPLED, flops=1.0)
        with pytest.raises(RequestError, match="no run is of the representation 'int3'"):
            candidates(runs, DECOUPLED, formats=("int3",))

    def test_the_kinds_of_a_law_with_columns_are_offered(self) -> None:
        runs = read_runs(named_runs("quartet_runs"))
        offered = candidates(runs, find_law("gamma"))
        assert set(zip(offered.representation, offered.columns["backward"], strict=True)) == set(
            zip(runs.representation, runs.columns["backward"], strict=True)
        )


class TestRidges:
    """Two runs proposed for runs that leave a parameter open, trained in simulation, do settle it."""

    @pytest.mark.parametrize("seed", [0, 1, 2])
    @pytest.mark.parametrize("kind", ["one D/N", "one N", "one D"])
    def test_the_two_runs_break_the_ridge(self, kind: str, seed: int) -> None:
        runs = {
            "one D/N": lambda: simulated(seed, ratios=(30.0,)),
            "one N": lambda: simulated(seed, sizes=(1e8,), ratios=(5, 10, 20, 40, 80, 160)),
            "one D": lambda: replace(simulated(seed, ratios=(30.0,)), tokens=np.full(12, 3e9)),
        }[kind]()
        random = np.random.default_rng(seed)
        runs = replace(runs, loss=truth(runs) * np.exp(random.normal(0, 0.002, len(runs))))
        found = fit(runs, DECOUPLED, bootstraps=0)
        assert found.outcome.value == "not_identified"
        told = found.message.partition("two runs that tell most: ")[2].partition("); ")[0]
        pairs = [part.split(",")[:2] for part in told.split("(N ")[1:]]
        params, tokens = (np.array([float(pair[i].split()[-1]) for pair in pairs]) for i in (0, 1))
        assert len(params) == 2
        assert (6 * params * tokens).max() <= 1.1 * (6 * runs.params * runs.tokens).max() * 1.1
        added = Runs(params, tokens, np.ones(2), ("dense", "dense"))
        added = replace(added, loss=truth(added) * np.exp(random.normal(0, 0.002, 2)))
        for name in {"one D/N": ("E", "beta"), "one N": ("E", "alpha"), "one D": ("E", "beta")}[kind]:
            before, after = (self._width(these, name) for these in (runs, joined(runs, added)))
            assert after < 0.35 * before

    def _width(self, runs: Runs, name: str) -> float:
        objective, point = solved(runs)
        allowed = 0.5 * 3.841 * noise_variance(objective, point)
        measured = profile(objective, point, objective.names.index(name), allowed)
        return measured.high - measured.low

    def test_the_ridge_is_named(self) -> None:
        found = fit(read_runs(named_runs("quest_runs")), DECOUPLED, bootstraps=0)
        assert "(as E rises, alpha rises from 0.0649 to" in found.message
        assert "differ by less than the noise: it takes more such runs, or larger ones" in found.message


class TestAnswer:
    def test_document(self) -> None:
        document = ask(simulated(0), DECOUPLED, target_of(loss_at=(1e9, 2e10), representation="int4"))
        json.dumps(document, allow_nan=False)
        assert document["standard_error_after"] < document["standard_error"]
        assert document["value"] == pytest.approx(
            1.7 + 400 * (1e9 * 0.85) ** -0.34 + 410 * 2e10**-0.28, rel=5e-3
        )
        ratio = document["standard_error_after"] / document["standard_error"]
        assert document["volume_ratio"] == pytest.approx(ratio, rel=1e-4)
        by_fit = ask(simulated(0), fit(simulated(0), DECOUPLED, bootstraps=0), target_of(parameter="E"))
        assert by_fit == ask(simulated(0), DECOUPLED, target_of(parameter="E"))

    def test_as_many_runs_as_an_error_takes(self) -> None:
        runs, target = simulated(0), target_of(rho="int4")
        before = ask(runs, DECOUPLED, target, count=1)["standard_error"]
        goal = 0.9 * before
        found = ask(runs, DECOUPLED, target, goal=goal)
        needed = len(found["runs"])
        assert found["standard_error_after"] <= goal
        assert found == ask(runs, DECOUPLED, target, count=needed)
        assert needed == 1 or ask(runs, DECOUPLED, target, count=needed - 1)["standard_error_after"] > goal

    def test_errors_that_are_no_goal(self) -> None:
        for target, more, message in (
            (target_of(rho="int4"), {"goal": 1e-9}, "50 runs bring the standard error to"),
            (target_of(rho="int4"), {"goal": 0.1, "count": 3}, "leave --count out"),
            (target_of(), {"goal": 0.1}, "is for one quantity"),
        ):
            with pytest.raises(RequestError, match=message):
                ask(simulated(0), DECOUPLED, target, **more)

    def test_what_the_runs_do_not_determine_has_no_error_before(self) -> None:
        runs = simulated(0, sizes=(1e8,), ratios=(5, 10, 20, 40, 80, 160))
        document = ask(runs, find_law("chinchilla"), target_of(parameter="alpha"), count=3)
        assert document["standard_error"] is None
        json.dumps(document, allow_nan=False)

    def test_refusals(self) -> None:
        runs = simulated(0)
        with pytest.raises(RequestError, match="parameter and rho are all asked for"):
            target_of(parameter="E", rho="int4")
        with pytest.raises(RequestError, match="no N and D of a loss"):
            target_of(representation="int4")
        with pytest.raises(RequestError, match="has no parameter 'gamma'"):
            design(runs, DECOUPLED, Named("gamma"))
        with pytest.raises(RequestError, match="no run is of the representation 'int3'"):
            design(runs, DECOUPLED, LossAt(1e9, 1e10, "int3"))
        with pytest.raises(RequestError, match="params is -1"):
            design(runs, DECOUPLED, LossAt(-1.0, 1e10))
        with pytest.raises(RequestError, match="7 runs for 7 parameters"):
            design(runs.select(np.arange(36) < 7), DECOUPLED, Named("E"))
        with pytest.raises(RequestError, match="0 runs are asked for"):
            design(runs, DECOUPLED, Named("E"), count=0)
