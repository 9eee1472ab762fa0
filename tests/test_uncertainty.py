"""Resampling, covariance and profiles of fits, against linear theory and scipy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.stats import t

from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.grid import profile_map
from rhoc.runtime.laws.newton import descend
from rhoc.runtime.laws.objective import Objective, Residual
from rhoc.runtime.laws.runs import Runs
from rhoc.runtime.laws.terms import Terms
from rhoc.runtime.laws.uncertainty.noise import leverage, noise
from rhoc.runtime.laws.uncertainty.profile import profile_intervals
from rhoc.runtime.laws.uncertainty.quantities import quantities
from rhoc.runtime.laws.uncertainty.resampling import RESAMPLINGS, resample
from rhoc.runtime.laws.uncertainty.sandwich import sandwich
from rhoc.runtime.laws.uncertainty.wild import wild_by

from .simulated import simulated

DATA = Path(__file__).parent / "data" / "quest_runs.csv"
NAMES = ("E", "A", "alpha", "B", "beta", "rho[int4]", "rho[int2]")


def solved(runs: Runs, law: str = "decoupled", delta: float = inf) -> tuple[Objective, np.ndarray]:
    """An objective and its optimum."""
    objective = Objective(Terms(find_law(law), runs), runs.loss, delta)
    found = descend(objective, profile_map(objective).starts(), np.ones((1, len(runs))))
    return objective, found.points[int(np.argmin(found.values))]


def log_residual(runs: Runs) -> Callable[[np.ndarray], np.ndarray]:
    """Of the decoupled law in the parameters `NAMES`, A and B and rho as logarithms, written out by hand."""
    groups = [np.array([name == which for name in runs.representation]) for which in ("int4", "int2")]

    def residual(p: np.ndarray) -> np.ndarray:
        size = np.log(runs.params) + p[5] * groups[0] + p[6] * groups[1]
        loss = p[0] + np.exp(p[1] - p[2] * size) + np.exp(p[3] - p[4] * np.log(runs.tokens))
        return np.log(np.maximum(loss, 1e-9) / runs.loss)

    return residual


def by_hand(values: dict[str, float]) -> np.ndarray:
    logs = ("A", "B", "rho[int4]", "rho[int2]")
    return np.array([np.log(values[n]) if n in logs else values[n] for n in NAMES])


def jacobian(residual: Callable[[np.ndarray], np.ndarray], p: np.ndarray) -> np.ndarray:
    steps = 1e-5 * np.maximum(np.abs(p), 0.1)
    moves = np.diag(steps)
    return np.stack(
        [(residual(p + m) - residual(p - m)) / (2 * s) for m, s in zip(moves, steps, strict=True)], 1
    )


@pytest.fixture(scope="module")
def case() -> tuple[Runs, Objective, np.ndarray, np.ndarray, np.ndarray]:
    """Runs, objective, optimum, and residuals and Jacobian by hand."""
    runs = simulated(3, noise=0.001)
    objective, point = solved(runs)
    values = {name: float(v[0]) for name, v in quantities(objective, point[None]).items()}
    residual = log_residual(runs)
    p = by_hand(values)
    return runs, objective, point, residual(p), jacobian(residual, p)


def deviations(values: np.ndarray) -> np.ndarray:
    """Of draws [draws, names], A and B and rho in logarithms."""
    logs = np.array([n in ("A", "B", "rho[int4]", "rho[int2]") for n in NAMES])
    return np.where(logs, np.log(np.where(logs, values, 1.0)), values).std(axis=0, ddof=1)


class TestResampling:
    @pytest.mark.parametrize("name", list(RESAMPLINGS))
    def test_draws_are_of_everything_and_repeat(self, case: tuple, name: str) -> None:
        runs, objective, point, _, _ = case
        draws = resample(runs, objective, point, 20, 5, name)
        assert draws.names == tuple(quantities(objective, point[None]))
        assert len(draws) == 20
        assert draws.discarded == 0
        np.testing.assert_array_equal(draws.values, resample(runs, objective, point, 20, 5, name).values)
        assert not np.array_equal(draws.values, resample(runs, objective, point, 20, 6, name).values)
        assert (draws.column("rho[dense]") == 1).all()
        assert draws.column("E").std() > 0
        assert len(resample(runs, objective, point, 0, 5, name)) == 0

    def test_parametric_draws_spread_as_linear_theory_says(self, case: tuple) -> None:
        runs, objective, point, residual, slopes = case
        draws = resample(runs, objective, point, 1500, 0, "parametric")
        clipped = np.clip(residual, *(np.array([-3, 3]) * 1.4826 * np.median(np.abs(residual))))
        variance = np.square(clipped).sum() / (len(runs) - 7)
        expected = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)) * variance)
        found = deviations(np.stack([draws.column(n) for n in NAMES], axis=1))
        np.testing.assert_allclose(found, expected, rtol=0.1)

    def test_wild_draws_spread_as_errors_common_to_a_cluster_do(self, case: tuple) -> None:
        """Against the cluster-robust covariance of linear theory, for clusters of pairs of runs."""
        runs, objective, point, residual, slopes = case
        of = np.arange(len(runs)) // 2
        points, lost = wild_by(of.tolist(), objective, point, 1500, 0)
        inverse = np.linalg.inv(slopes.T @ slopes)
        hat = np.einsum("ij,jk,ik->i", slopes, inverse, slopes)
        score = slopes * (residual / (1 - hat))[:, None]
        summed = np.stack([score[of == c].sum(axis=0) for c in np.unique(of)])
        expected = np.sqrt(np.diag(inverse @ summed.T @ summed @ inverse))
        found = quantities(objective, points)
        np.testing.assert_allclose(
            deviations(np.stack([found[n] for n in NAMES], axis=1)), expected, rtol=0.12
        )
        assert lost == 0

    def test_an_outlier_does_not_make_the_noise(self) -> None:
        runs = simulated(3, noise=0.001)
        loss = runs.loss.copy()
        loss[7] *= 1.2
        objective, point = solved(replace(runs, loss=loss), delta=1e-3)
        assert noise(objective, point).deviation < 0.003
        assert np.sqrt(np.square(objective.residual(point[None])).mean()) > 0.02

    def test_an_unknown_name(self, case: tuple) -> None:
        runs, objective, point, _, _ = case
        with pytest.raises(RequestError, match="no resampling is called 'jackknife'"):
            resample(runs, objective, point, 5, 0, "jackknife")

    @pytest.mark.parametrize("name", ["wild", "parametric"])
    def test_linear_residuals(self, name: str) -> None:
        runs = simulated(3, noise=0.001)
        objective = Objective(Terms(find_law("decoupled"), runs), runs.loss, inf, Residual.LINEAR)
        point = descend(objective, solved(runs)[1][None], np.ones((1, len(runs)))).points[0]
        linear = resample(runs, objective, point, 400, 0, name).column("alpha").std()
        logs = resample(runs, *solved(runs), 400, 0, name).column("alpha").std()
        assert linear == pytest.approx(logs, rel=0.5)


class TestSandwich:
    def test_against_its_formula_by_hand(self, case: tuple) -> None:
        """Least squares with small residuals: H is J^T J, and HC3 has e/(1 - h)."""
        _, objective, point, residual, slopes = case
        inverse = np.linalg.inv(slopes.T @ slopes)
        hat = np.einsum("ij,jk,ik->i", slopes, inverse, slopes)
        np.testing.assert_allclose(leverage(objective, point), hat, rtol=1e-5)
        score = slopes * (residual / (1 - hat))[:, None]
        expected = np.sqrt(np.diag(inverse @ score.T @ score @ inverse))
        found = sandwich(objective, point)
        scale = [found.values[n] if n in ("A", "B", "rho[int4]", "rho[int2]") else 1.0 for n in NAMES]
        np.testing.assert_allclose(
            [found.standard_error(n) / s for n, s in zip(NAMES, scale, strict=True)], expected, rtol=0.05
        )

    def test_a_baseline_is_certain_and_an_interval_never_negative(self, case: tuple) -> None:
        _, objective, point, _, _ = case
        found = sandwich(objective, point)
        assert found.interval("rho[dense]") == (1.0, 1.0)
        low, high = found.interval("A", 0.9)
        assert low * high == pytest.approx(found.values["A"] ** 2)  # symmetric in the logarithm
        wide = replace(found, values={**found.values, "E": 1e-6})
        assert wide.interval("E")[0] == 0.0

    def test_few_residuals_within_delta(self) -> None:
        """Noise twenty times delta: the objective is nearly sum |r|, of variance pi/2 that of least squares."""
        runs = simulated(5, noise=0.002)
        small, large = (sandwich(*solved(runs, delta=delta)) for delta in (1e-4, inf))
        for name in ("alpha", "beta", "rho[int2]"):
            assert 0.8 < small.standard_error(name) / large.standard_error(name) < 2.0


class TestProfile:
    @pytest.mark.parametrize("name", ["E", "A", "beta", "rho[int2]"])
    def test_ends_against_scipy_with_the_quantity_fixed(self, case: tuple, name: str) -> None:
        """At both ends the best other parameters, found by scipy, are worse by what Student's t allows."""
        runs, objective, point, residual, _ = case
        low, high = profile_intervals(objective, point, 0.9, [name])[name]
        values = {n: float(v[0]) for n, v in quantities(objective, point[None]).items()}
        assert low < values[name] < high
        at, full, free = by_hand(values), log_residual(runs), [n != name for n in NAMES]
        variance = np.square(residual).sum() / (len(runs) - 7)
        allowed = float(t.ppf(0.95, len(runs) - 7)) ** 2
        for end in (low, high):
            fixed = by_hand({**values, name: end})

            def rest(p: np.ndarray, fixed: np.ndarray = fixed) -> np.ndarray:
                whole = fixed.copy()
                whole[free] = p
                return full(whole)

            found = least_squares(rest, at[free], x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14)
            rise = (2 * found.cost - np.square(residual).sum()) / variance
            assert rise == pytest.approx(allowed, rel=0.03)

    def test_a_parameter_on_its_bound(self) -> None:
        """E of the QuEST runs is 0: the interval starts there and ends where others could not make up for it."""
        objective, point = solved(read_runs(DATA), delta=1e-3)
        low, high = profile_intervals(objective, point, 0.95, ["E"])["E"]
        assert low == 0.0
        assert 0.03 < high < 0.5

    def test_of_everything(self, case: tuple) -> None:
        _, objective, point, _, _ = case
        found = profile_intervals(objective, point, 0.9)
        cheap = sandwich(objective, point)
        assert list(found) == list(cheap.values)
        for name in NAMES:
            width, other = (np.diff(ends)[0] for ends in (found[name], cheap.interval(name, 0.9)))
            assert 0.5 < width / other < 2.0
        assert found["rho[dense]"] == (1.0, 1.0)
