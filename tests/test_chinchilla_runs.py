"""The 240 public runs of the Chinchilla paper: the optimum that is known, and the traps on the way to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.bootstrap import refit, resampled
from rhoc.runtime.laws.fit import fit
from rhoc.runtime.laws.newton import descend
from rhoc.runtime.laws.objective import Objective
from rhoc.runtime.laws.result import Fit
from rhoc.runtime.laws.runs import Runs
from rhoc.runtime.laws.terms import Terms

from . import chinchilla_by_hand as by_hand
from .public_runs import public_runs

OPTIMUM = {"E": 1.81722, "A": 477.83, "alpha": 0.34731, "B": 2143.4, "beta": 0.36717}
BEST = 1.018274e-3


@pytest.fixture(scope="module")
def runs() -> Runs:
    return read_runs(public_runs("chinchilla_runs"), "Chinchilla, 240 runs")


@pytest.fixture(scope="module")
def found(runs: Runs) -> Fit:
    return fit(runs, find_law("chinchilla"), bootstraps=200)


@pytest.fixture(scope="module")
def problem(runs: Runs) -> Objective:
    return Objective(Terms(find_law("chinchilla"), runs), runs.loss, by_hand.DELTA)


def centred(problem: Objective, values: dict[str, float]) -> np.ndarray:
    """A point of the objective, [1, 5], from named parameters: coefficients there are of centred terms."""
    outer = np.array([[values[p.name] for p in problem.terms.outer]])
    unit = problem.terms.read(np.ones((1, 3)), outer).parameters
    own = [values[name] / unit[name][0] for name in problem.terms.coefficients]
    return np.concatenate([np.array([own]), outer], axis=1)


def logs(values: dict[str, float]) -> np.ndarray:
    return np.array([*(np.log(values[name]) for name in "ABE"), values["alpha"], values["beta"]])


def named(point: np.ndarray) -> dict[str, float]:
    values = np.exp(point[:3])
    return {"A": values[0], "B": values[1], "E": values[2], "alpha": point[3], "beta": point[4]}


def test_the_global_optimum(runs: Runs, found: Fit) -> None:
    assert found.objective <= 1.018275e-3
    assert found.objective == pytest.approx(BEST, rel=1e-6)
    assert by_hand.objective(runs)(logs(found.values)) == pytest.approx(found.objective, rel=1e-9)
    for name, value in OPTIMUM.items():
        assert found.values[name] == pytest.approx(value, rel=2e-4), name


def test_standard_errors_are_those_that_were_published(found: Fit) -> None:
    """Besiroglu et al., table 1: alpha .3478 +- .02, beta .3658 +- .02, E 1.8172 +- .03."""
    for name, published in {"alpha": 0.02, "beta": 0.02, "E": 0.03}.items():
        assert found.parameters[name].standard_error == pytest.approx(published, rel=0.35), name


def test_no_cell_of_the_map_is_lower(found: Fit) -> None:
    cells = np.array(found.certificate.objective)
    assert cells.shape == (28, 28)
    assert found.objective < cells.min()
    assert cells.min() < 1.2 * found.objective
    assert found.certificate.below_every_cell
    assert found.certificate.agreeing == found.certificate.starts


def test_the_published_point_is_no_place_to_stop(problem: Objective) -> None:
    start = centred(problem, named(by_hand.HOFFMANN))
    ended = descend(problem, start, np.ones((1, 240)))
    reading = problem.terms.read(ended.points[:, :3], ended.points[:, 3:])
    assert ended.solved.all()
    assert ended.values[0] == pytest.approx(BEST, rel=1e-6)
    assert reading.parameters["E"][0] == pytest.approx(OPTIMUM["E"], abs=1e-4)


def test_a_mean_stops_there_and_a_sum_on_the_way(runs: Runs, found: Fit) -> None:
    total = by_hand.objective(runs)
    mean = minimize(lambda p: total(p) / 240, by_hand.HOFFMANN, method="L-BFGS-B")
    summed = minimize(total, by_hand.HOFFMANN, method="L-BFGS-B")
    assert mean.success
    assert np.exp(mean.x[2]) == pytest.approx(1.69, abs=0.02)
    assert total(mean.x) > 1.1 * found.objective
    assert total(mean.x) > summed.fun > 1.01 * found.objective


def test_few_published_starts_get_there(runs: Runs, found: Fit) -> None:
    """Every 300th of the 4,500: all say they succeeded, few are right, and none is better."""
    total = by_hand.objective(runs)
    ends = [minimize(total, s, method="L-BFGS-B") for s in list(by_hand.starts())[::300]]
    near = [end.fun <= 1.1 * found.objective for end in ends]
    assert min(end.fun for end in ends) >= found.objective * (1 - 1e-9)
    assert sum(near) < 0.5 * len(ends)


def test_resampled_optima_are_those_of_scipy(runs: Runs, found: Fit, problem: Objective) -> None:
    weights = resampled([np.arange(240)], 240, 12, seed=3)
    point = centred(problem, found.values)[0]
    points, lost = refit(problem, point, weights)
    assert lost == 0
    for row, own in zip(weights, problem.value(points, weights), strict=True):
        starts = (logs(found.values), by_hand.HOFFMANN)
        best = min(by_hand.refitted(runs, row, start).fun / 1e3 for start in starts)
        assert own == pytest.approx(best, rel=1e-5)
        assert own <= best * (1 + 1e-7)


def test_counts_of_runs_are_runs(runs: Runs) -> None:
    """A column of weights stands for runs that are listed as often."""
    counts = np.random.default_rng(0).integers(1, 3, 240)
    repeated = runs.select(np.repeat(True, 240))
    rows = np.repeat(np.arange(240), counts)
    listed = Runs(runs.params[rows], runs.tokens[rows], runs.loss[rows], ("dense",) * len(rows))
    weighed = replace(repeated, columns={"weight": tuple(str(c) for c in counts)})
    one, other = (fit(r, find_law("chinchilla"), bootstraps=0) for r in (listed, weighed))
    assert one.objective == pytest.approx(other.objective, rel=1e-9)
    assert one.values["alpha"] == pytest.approx(other.values["alpha"], rel=1e-6)
