"""Forecasts inside the data, drift, and intervals beyond the data: against fits of their own, and real runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pytest
from scipy.stats import t

from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.backtest import Backtest, Forecast, backtest, distances
from rhoc.runtime.laws.compose import Composition
from rhoc.runtime.laws.fit import fit
from rhoc.runtime.laws.grid import profile_map
from rhoc.runtime.laws.newton import descend
from rhoc.runtime.laws.objective import Objective, Residual
from rhoc.runtime.laws.predict import predict
from rhoc.runtime.laws.result import Fit
from rhoc.runtime.laws.runs import Runs
from rhoc.runtime.laws.terms import Terms
from rhoc.runtime.laws.uncertainty.extrapolate import extrapolate, law_weights

from .public_runs import named_runs
from .simulated import simulated

CUTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def fit_with_backtest(runs: Runs, law: str, bootstraps: int = 100, delta: float = 1e-3) -> Fit:
    """A fit with its backtest."""
    found = fit(runs, find_law(law), bootstraps=bootstraps, delta=delta)
    objective = Objective(Terms(find_law(law), runs), runs.loss, delta)
    polished = descend(objective, profile_map(objective).starts(), np.ones((1, len(runs))))
    point = polished.points[int(np.argmin(polished.values))]
    return replace(found, backtest=backtest(objective, point))


@pytest.fixture(scope="module")
def bent() -> tuple[Fit, Fit, Runs]:
    """A law without a floor and one with, fitted to the small ones of runs that have a floor; and all runs."""
    runs = simulated(
        4, sizes=tuple(np.geomspace(1e7, 3e10, 8)), ratios=(10.0, 30.0, 100.0), rho={"dense": 1.0}, noise=5e-4
    )
    small = runs.select(runs.params < 2e9)
    return fit_with_backtest(small, "kaplan"), fit_with_backtest(small, "chinchilla"), runs


class TestForecasts:
    def test_each_is_what_a_fit_of_the_kept_runs_says(self) -> None:
        """Every forecast against `fit` on the runs before its cut, with the law's own formula."""
        runs = simulated(1, sizes=(3e7, 6e7, 1e8, 3e8, 1e9))
        found = fit_with_backtest(runs, "decoupled", 0).backtest
        assert {f.by for f in found.forecasts} == {"budget", "size"}
        for forecast in found.forecasts[::3]:
            column = runs.params if forecast.by == "size" else 6 * runs.params * runs.tokens
            keep = column <= forecast.cut * 1.001
            assert keep.sum() == forecast.kept
            alone = fit(runs.select(keep), find_law("decoupled"), bootstraps=0)
            away = distances(runs.select(keep), runs.params, runs.tokens)
            step = int(np.ceil(forecast.distance / 0.5)) - 1
            ahead = ~keep & (away > max(0.5 * step, 0.05)) & (away <= 0.5 * (step + 1))
            assert ahead.sum() == forecast.runs
            said = [
                alone.loss(runs.params[i], runs.tokens[i], alone.rho[runs.representation[i]].value)
                for i in np.flatnonzero(ahead)
            ]
            errors = np.log(np.array(said) / runs.loss[ahead])
            assert forecast.bias == pytest.approx(errors.mean(), abs=2e-6)
            assert forecast.error == pytest.approx(np.sqrt(np.square(errors).mean()), abs=2e-6)
            assert forecast.distance == pytest.approx(np.sqrt(np.square(away[ahead]).mean()))

    def test_what_is_expected_of_noise_is_what_noise_does(self) -> None:
        """Over 40 simulated sets the mean squared error of a forecast is the expected one."""
        runs = simulated(0, sizes=(3e7, 1e8, 3e8, 1e9, 3e9), noise=0.0)
        objective = Objective(Terms(find_law("decoupled"), runs), runs.loss, inf)
        start = descend(objective, profile_map(objective).starts(), np.ones((1, len(runs)))).points[:1]
        random, found = np.random.default_rng(0), []
        for _ in range(40):
            noisy = replace(objective, loss=runs.loss * np.exp(random.normal(0, 0.002, len(runs))))
            point = descend(noisy, start, np.ones((1, len(runs)))).points[0]
            found.append(next(f for f in backtest(noisy, point).forecasts if f.by == "size"))
        assert len({f.cut for f in found}) == 1
        ratio = np.mean([f.error**2 for f in found]) / np.mean([f.expected**2 for f in found])
        assert 0.6 < ratio < 1.5

    def test_a_law_that_holds_hardly_drifts_and_one_that_does_not_drifts(
        self, bent: tuple[Fit, Fit, Runs]
    ) -> None:
        wrong, right, _ = bent
        assert wrong.backtest.drift.per_decade > 3 * right.backtest.drift.per_decade
        assert right.backtest.drift.per_decade < 0.01  # what public sets have, which weighs in

    def test_runs_of_a_format_that_is_not_before_the_cut_are_not_forecast(self) -> None:
        runs = simulated(1, sizes=(3e7, 6e7, 1e8, 3e8, 1e9))
        late = runs.select(np.array(runs.representation) != "int2")
        extra = runs.select((np.array(runs.representation) == "int2") & (runs.params == 1e9))
        both = Runs(
            *(np.concatenate([getattr(late, n), getattr(extra, n)]) for n in ("params", "tokens", "loss")),
            late.representation + extra.representation,
        )
        sizes = [f for f in fit_with_backtest(both, "decoupled", 0).backtest.forecasts if f.by == "size"]
        ahead = sum(f.runs for f in sizes if 2e8 < f.cut < 4e8)
        assert ahead == 6  # two formats at three D/N, not three formats

    @pytest.mark.parametrize("residuals", list(Residual))
    def test_errors_are_relative_whatever_the_residuals(self, residuals: Residual) -> None:
        runs = simulated(1, sizes=(3e7, 6e7, 1e8, 3e8, 1e9))
        objective = Objective(Terms(find_law("decoupled"), runs), runs.loss, inf, residuals)
        polished = descend(objective, profile_map(objective).starts(), np.ones((1, len(runs))))
        found = backtest(objective, polished.points[int(np.argmin(polished.values))])
        assert 0.001 < np.median([f.error for f in found.forecasts]) < 0.01
        assert 0.001 < np.median([f.expected for f in found.forecasts]) < 0.01

    def test_two_sizes_say_nothing(self) -> None:
        found = fit_with_backtest(
            simulated(0, sizes=(1e8, 1e9), ratios=(10.0, 30.0, 90.0, 200.0)), "decoupled", 0
        )
        assert not found.backtest.forecasts
        assert found.backtest.drift.cuts == 0
        assert found.backtest.drift.per_decade == 0.01


class TestDrift:
    def test_it_is_the_excess_over_noise(self) -> None:
        made = [Forecast("budget", 1e18 * i, 0.5, 0.0, 0.02, 0.01, 9, 3) for i in range(1, 101)]
        drift = Backtest((1, 2), (1, 2), (1, 4), tuple(made)).drift
        excess = (0.02**2 - 0.01**2) / 0.5**2
        assert drift.per_decade == pytest.approx(np.sqrt((3 * 0.01**2 + 50 * excess) / 53))
        assert drift.reach(0.7, 0.9) == pytest.approx(t.ppf(0.95, 53) * drift.per_decade * 0.7)

    def test_distance(self) -> None:
        found = Backtest((1e8, 1e9), (1e9, 1e10), (1e17, 1e18))
        assert found.distance(3e8, 3e9) == 0.0
        assert found.distance(1e10, 5e9) == pytest.approx(np.log10(5e19 / 1e18))
        assert found.distance(1e9, 1e10) == pytest.approx(1.0)  # N and D inside, but not together
        assert found.distance(1e7, 5e9) == pytest.approx(np.log10(1e17 / 5e16) + np.log10(5))

    def test_a_document(self, bent: tuple[Fit, Fit, Runs]) -> None:
        text = json.dumps(bent[0].to_document(), allow_nan=False)
        again = Fit.from_document(json.loads(text))
        assert again.backtest == bent[0].backtest
        assert json.dumps(again.to_document(), allow_nan=False) == text


class TestExtrapolation:
    def test_beyond_the_data_it_holds_the_truth_where_the_bootstrap_does_not(
        self, bent: tuple[Fit, Fit, Runs]
    ) -> None:
        wrong, right, runs = bent
        far = np.flatnonzero(runs.params > 3e9)
        bare = replace(wrong, backtest=None)
        held = {"bare": 0, "drift": 0, "laws": 0}
        for i in far:
            at = (float(runs.params[i]), float(runs.tokens[i]))
            dense = Composition(wrong.priced("dense", {}), ())
            ends = {"bare": predict(bare, dense, *at), "drift": predict(wrong, dense, *at)}
            intervals = {k: v.loss_interval for k, v in ends.items()}
            intervals["laws"] = extrapolate([wrong, right], *at).interval
            for name, (low, high) in intervals.items():
                held[name] += low <= runs.loss[i] <= high
        assert held["bare"] <= 0.5 * len(far)
        assert held["drift"] >= 0.8 * len(far)
        assert held["laws"] >= 0.9 * len(far)

    def test_laws_weigh_by_their_forecasts(self, bent: tuple[Fit, Fit, Runs]) -> None:
        wrong, right, _ = bent
        weights = law_weights([wrong.backtest, right.backtest])
        assert weights.sum() == pytest.approx(1.0)
        assert weights[1] > 0.9
        none = replace(right.backtest, forecasts=())
        np.testing.assert_allclose(law_weights([wrong.backtest, none]), 0.5)

    def test_inside_the_data_nothing_is_added(self, bent: tuple[Fit, Fit, Runs]) -> None:
        wrong, _, _ = bent
        dense = Composition(wrong.priced("dense", {}), ())
        middle = (1e8, 3e9)
        with_, without = (predict(f, dense, *middle) for f in (wrong, replace(wrong, backtest=None)))
        assert with_.loss_interval == without.loss_interval
        found = extrapolate([wrong], *middle)
        assert found.distance == 0
        np.testing.assert_allclose(found.interval, with_.loss_interval)

    def test_it_grows_with_distance_and_says_why(self, bent: tuple[Fit, Fit, Runs]) -> None:
        found = [extrapolate(bent[:2], n, 30 * n) for n in (1e8, 1e10, 1e12)]
        widths = [np.log(f.interval[1] / f.interval[0]) for f in found]
        assert widths == sorted(widths)
        assert "drift over" in found[2].parts
        alike = [replace(f, backtest=replace(f.backtest, forecasts=())) for f in bent[:2]]
        assert "spread between laws" in extrapolate(alike, 1e12, 3e13).parts
        assert "hold-outs" in found[2].parts
        json.dumps(found[2].to_document(), allow_nan=False)
        note = predict(bent[0], Composition(bent[0].priced("dense", {}), ()), 1e12, 3e13).note
        assert "per factor of ten" in note
        blind = replace(bent[0], backtest=None)
        assert "no backtest" in predict(blind, Composition(blind.priced("dense", {}), ()), 1e12, 3e13).note

    def test_refusals(self, bent: tuple[Fit, Fit, Runs]) -> None:
        with pytest.raises(RequestError, match="no fit"):
            extrapolate([], 1e9, 1e10)
        with pytest.raises(RequestError, match="no backtest"):
            extrapolate([replace(bent[0], backtest=None)], 1e9, 1e10)


@dataclass(frozen=True)
class Held:
    """Of one set and law: how often intervals held the runs beyond a cut, near (one step) and farther."""

    near: float
    far: float
    bare_near: float
    bare_far: float
    ratio: float


def calibrated(runs: Runs, law: str, parts: Sequence[float] = CUTS) -> Held:
    """Cuts at quantiles of the budget: what is fitted before forecasts what comes after."""
    budget = runs.params * runs.tokens
    rows = [
        row
        for part in parts
        for row in forecast_rows(runs, law, budget <= np.quantile(budget, part) * 1.0001)
    ]
    away, drift, bare, ratio = (np.array(column) for column in zip(*rows, strict=True))
    near = away <= 0.5
    return Held(*(float(c[w].mean()) for c in (drift, bare) for w in (near, ~near)), float(np.median(ratio)))


def forecast_rows(runs: Runs, law: str, keep: np.ndarray) -> Iterator[tuple[float, bool, bool, float]]:
    """Distance, whether each kind of interval held the run, and how much wider the one is."""
    kept = runs.select(keep)
    if len(kept) < 15 or keep.all():
        return
    found = fit_with_backtest(kept, law)
    for i in np.flatnonzero(~keep):
        name = runs.representation[i]
        columns = [c for c in found.law.every_column if c.name in runs.columns]
        cells = {c.name: runs.columns[c.name][i] for c in columns}
        features = {
            c.name: cells[c.name] if isinstance(c.default, str) else float(cells[c.name]) for c in columns
        }
        known = not found.law.rho or name in found.rho
        backward = cells.get("backward", "dense")
        if not known or backward not in kept.columns.get("backward", ("dense",)):
            continue
        said = extrapolate([found], float(runs.params[i]), float(runs.tokens[i]), name, features)
        bare = replace(said.width, drift=0.0).around(said.loss)
        holds = [low <= runs.loss[i] <= high for low, high in (said.interval, bare)]
        yield (
            said.distance,
            holds[0],
            holds[1],
            float(np.log(said.interval[1] / said.interval[0]) / np.log(bare[1] / bare[0])),
        )


def public_sets() -> Iterator[tuple[str, Runs, str]]:
    for file, laws in (
        ("chinchilla_runs", ("chinchilla", "gamma")),
        ("olmo_ladder", ("chinchilla", "gamma")),
        ("quartet_runs", ("gamma",)),
        ("quest_runs", ("decoupled", "gamma")),
        ("frantar_t5", ("sparse",)),
        ("frantar_vit", ("sparse",)),
    ):
        for law in laws:
            yield f"{file} {law}", read_runs(named_runs(file)), law


def test_one_public_set_is_calibrated() -> None:
    held = calibrated(read_runs(named_runs("chinchilla_runs")), "chinchilla", (0.6, 0.8))
    assert 0.88 <= held.near <= 0.99
    assert held.far >= 0.88
    assert held.bare_far <= 0.75


@pytest.mark.slow
def test_public_sets_are_calibrated() -> None:
    """Nominal 95 % intervals for every run beyond a cut, over all sets and laws alike."""
    found = {name: calibrated(runs, law) for name, runs, law in public_sets()}
    for name, held in found.items():
        print(f"{name:28s}", *(f"{v:.2f}" for v in vars(held).values()))
    mean = Held(
        *(
            float(np.nanmean([getattr(h, n) for h in found.values()]))
            for n in vars(found["frantar_t5 sparse"])
        )
    )
    print("mean", vars(mean))
    assert 0.90 <= mean.near <= 0.99
    assert 0.88 <= mean.far <= 0.99
    assert mean.bare_far < 0.85
