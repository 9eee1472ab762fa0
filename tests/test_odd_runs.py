"""Runs as they come: odd sets end in a clear outcome or a clear error, and never above the planted point.

Warnings are errors in these tests, so that numpy's show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhoc.compiler.runs_csv import read_runs, runs_from_rows
from rhoc.runtime.errors import InvalidDocument, RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.fit import fit
from rhoc.runtime.laws.grid import profile_map
from rhoc.runtime.laws.objective import Objective
from rhoc.runtime.laws.outcome import Outcome
from rhoc.runtime.laws.result import Fit
from rhoc.runtime.laws.runs import Runs
from rhoc.runtime.laws.terms import Terms

from .simulated import RHO, TRUTH, huber, simulated

BASE = simulated(0)
RANDOM = np.random.default_rng(0)
ADVICE = tuple(outcome.advice for outcome in Outcome)


def keep(mask: np.ndarray) -> Runs:
    return BASE.select(mask)


def planted_objective(runs: Runs, delta: float, unit: float = 1.0, size: float = 1.0) -> float:
    """The sum of Huber losses at the planted parameters; loss in `unit` nats, N in `size` parameters."""
    rho = np.array([RHO[name] for name in runs.representation])
    loss = TRUTH["E"] + TRUTH["A"] * (runs.params * size * rho) ** -TRUTH["alpha"]
    loss = (loss + TRUTH["B"] * runs.tokens ** -TRUTH["beta"]) / unit
    return float(huber(np.log(loss / runs.loss), delta).sum())


def outliers() -> Runs:
    loss = BASE.loss.copy()
    loss[[3, 17]] *= [1.4, 0.7]
    return replace(BASE, loss=loss)


def repeated(runs: Runs, index: np.ndarray) -> Runs:
    columns = {name: getattr(runs, name)[index] for name in ("params", "tokens", "loss")}
    names = tuple(runs.representation[i] for i in index)
    return Runs(**columns, representation=names, data="repeated runs")


def many() -> Runs:
    index = RANDOM.integers(0, len(BASE), 10_000)
    runs = repeated(BASE, index)
    tokens = runs.tokens * np.exp(RANDOM.normal(0, 0.5, len(runs)))
    rho = np.array([RHO[name] for name in runs.representation])
    loss = (
        TRUTH["E"]
        + TRUTH["A"] * (runs.params * rho) ** -TRUTH["alpha"]
        + TRUTH["B"] * tokens ** -TRUTH["beta"]
    )
    return replace(runs, tokens=tokens, loss=loss * np.exp(RANDOM.normal(0, 0.002, len(runs))))


SETS: dict[str, Callable[[], Runs]] = {
    "dense and compressed": lambda: BASE,
    "dense alone": lambda: keep(np.array(BASE.representation) == "dense"),
    "outliers": outliers,
    "every run twice": lambda: repeated(BASE, np.arange(36).repeat(2)),
    "one run forty times": lambda: repeated(BASE, np.array([0, 1, 2, *[5] * 40])),
    "fixed D/N": lambda: keep(np.isclose(BASE.tokens_per_param, 30)),
    "fixed N": lambda: keep(BASE.params == 1e8),
    "fixed D": lambda: replace(simulated(0, ratios=(30.0,)), tokens=np.full(12, 3e9)),
    "one point": lambda: repeated(BASE, np.zeros(12, dtype=int)),
    "one run": lambda: keep(np.arange(36) == 0),
    "three points": lambda: keep(np.isin(np.arange(36), [0, 3, 27])),
    "as many points as parameters": lambda: keep(np.arange(36) < 7),
    "constant loss": lambda: replace(BASE, loss=np.full(36, 3.0)),
    "nearly constant loss": lambda: replace(BASE, loss=3.0 + 1e-9 * np.arange(36)),
    "loss that rises with N": lambda: replace(BASE, loss=np.sort(BASE.loss)),
    "noise alone": lambda: replace(BASE, loss=np.exp(RANDOM.normal(1, 0.3, 36))),
    "no noise": lambda: simulated(0, noise=0.0),
    "much noise": lambda: simulated(0, noise=0.3),
    "millions and bits": lambda: replace(BASE, params=BASE.params / 1e6, loss=BASE.loss / np.log(2)),
    "huge losses": lambda: replace(BASE, loss=BASE.loss * 1e12),
    "tiny losses": lambda: replace(BASE, loss=BASE.loss * 1e-12),
    "huge counts": lambda: replace(BASE, params=BASE.params * 1e30, tokens=BASE.tokens * 1e30),
    "tiny counts": lambda: replace(BASE, params=BASE.params * 1e-30, tokens=BASE.tokens * 1e-30),
    "a format with one run": lambda: replace(BASE, representation=("int3", *BASE.representation[1:])),
    "a format far better than dense": lambda: replace(
        BASE, loss=BASE.loss * np.where(np.array(BASE.representation) == "int4", 0.5, 1.0)
    ),
    "a single enormous run": lambda: replace(
        BASE, params=np.where(np.arange(36) == 0, 1e15, BASE.params), loss=np.where(np.arange(36) == 0, 1e-3, BASE.loss)
    ),
}  # fmt: skip
PLANTED_POINT = ("dense and compressed", "dense alone", "every run twice", "outliers", "no noise", "much noise", "fixed D/N",
                 "fixed N", "three points")  # fmt: skip


def ended(runs: Runs, law: str, bootstraps: int = 5) -> Fit | None:
    """The fit, or None where it was refused with an advice."""
    try:
        return fit(runs, find_law(law), bootstraps=bootstraps)
    except RequestError as error:
        if not (error.message and error.advice):
            raise
        return None


class TestOddSets:
    @pytest.mark.parametrize("law", ["chinchilla", "decoupled", "kaplan"])
    @pytest.mark.parametrize("name", SETS)
    def test_a_clear_end(self, name: str, law: str) -> None:
        self._check(name, law)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", SETS)
    def test_a_clear_end_of_a_harder_law(self, name: str) -> None:
        self._check(name, "gamma")

    @pytest.mark.parametrize("name", SETS)
    def test_the_map_and_the_descent_agree(self, name: str) -> None:
        """Without losses that nothing removes, half of these sets have their optimum at a bound or nowhere."""
        found = ended(SETS[name](), "kaplan", bootstraps=0)
        assert found is None or found.outcome is not Outcome.NOT_CONVERGED, found.message

    def _check(self, name: str, law: str) -> None:
        found = ended(SETS[name](), law)
        if found is None:
            return
        assert isinstance(found.outcome, Outcome)
        assert any(advice in found.message for advice in ADVICE)
        assert np.isfinite([*found.residuals, found.objective, found.rms_log_error]).all()
        if name in PLANTED_POINT and (law == "decoupled" or (law, name) == ("chinchilla", "dense alone")):
            assert found.objective <= planted_objective(SETS[name](), 1e-3) * (1 + 1e-9) + 1e-18

    def test_other_units_are_the_same_fit(self) -> None:
        """N in millions and loss in bits: the same exponents, E and objective in the other unit."""
        plain = fit(BASE, find_law("decoupled"), bootstraps=0)
        other = fit(SETS["millions and bits"](), find_law("decoupled"), bootstraps=0)
        assert other.objective == pytest.approx(plain.objective, rel=1e-6)
        assert other.values["alpha"] == pytest.approx(plain.values["alpha"], rel=1e-5)
        assert other.values["E"] == pytest.approx(plain.values["E"] / np.log(2), rel=1e-5)

    def test_ten_thousand_runs(self) -> None:
        runs = many()
        found = fit(runs, find_law("decoupled"), bootstraps=0)
        assert found.outcome is Outcome.CONVERGED
        assert found.objective <= planted_objective(runs, 1e-3)
        assert found.values["alpha"] == pytest.approx(TRUTH["alpha"], abs=0.01)

    def test_a_basin_that_an_outlier_makes_narrow(self) -> None:
        """Wide Huber zones lead every start past it; a cell of the map lies in it."""
        runs = keep(np.isin(np.arange(36), [*range(2, 9), 12, 13, 15, 19, 20, 26, 27, 30]))
        runs = replace(runs, loss=runs.loss * np.where(np.arange(len(runs)) == 0, 1.3, 1.0))
        found = fit(runs, find_law("decoupled"), bootstraps=0)
        assert found.outcome is Outcome.CONVERGED, found.message
        assert found.objective < planted_objective(runs, 1e-3)

    @settings(max_examples=12, deadline=None)
    @given(st.data())
    def test_any_subset_ends_clearly_and_below_the_planted_point(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.integers(0, 35), min_size=1))
        factor = data.draw(st.sampled_from([1.0, 1.0, 1.3, 0.2]))
        runs = keep(np.isin(np.arange(36), list(chosen)))
        runs = replace(runs, loss=runs.loss * np.where(np.arange(len(runs)) == 0, factor, 1.0))
        found = ended(runs, "decoupled", bootstraps=0)
        if found is None:
            return
        assert found.objective <= planted_objective(runs, 1e-3) * (1 + 1e-9) + 1e-18
        assert any(advice in found.message for advice in ADVICE)


class TestTheMap:
    @pytest.mark.parametrize("name", ["noise alone", "a single enormous run", "much noise", "outliers"])
    @pytest.mark.parametrize("law", ["kaplan", "gamma", "decoupled"])
    def test_cells_have_the_objective_of_their_points(self, name: str, law: str) -> None:
        """Under a small power a sum far below the measured one is no better than it is."""
        runs = SETS[name]()
        objective = Objective(Terms(find_law(law), runs), runs.loss, 1e-3)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            found = profile_map(objective)
            there = objective.value(found.points, np.ones((1, len(runs))))
        cells = found.objective.ravel()
        able = np.isfinite(cells)  # where powers overflow there is no cell
        assert able.mean() > 0.7
        np.testing.assert_allclose(cells[able], there[able], rtol=1e-9)


class TestNamed:
    def test_outliers(self) -> None:
        found = fit(outliers(), find_law("decoupled"), bootstraps=0)
        assert "run 4 (dense, N 3e+07, D 9e+08): measured +" in found.message
        assert "largest residuals: run 18 (int2, N 1e+08, D 9e+09): measured -30" in found.message

    def test_duplicates(self) -> None:
        found = fit(SETS["every run twice"](), find_law("decoupled"), bootstraps=0)
        assert (
            "runs that are there twice, which makes intervals too narrow: run 2 like run 1" in found.message
        )
        assert "and 33 more" in found.message
        assert "there twice" not in fit(BASE, find_law("decoupled"), bootstraps=0).message


HEADER = "representation,params,tokens,loss\n"


def written(tmp_path: Path, *more: str) -> Path:
    rows = [
        f"{name},{n!r},{d!r},{loss!r}"
        for name, n, d, loss in zip(BASE.representation, BASE.params.tolist(), BASE.tokens.tolist(), BASE.loss.tolist(), strict=True)
    ]  # fmt: skip
    path = tmp_path / "runs.csv"
    path.write_text(HEADER + "\n".join([*rows, *more]) + "\n")
    return path


class TestDiverged:
    def test_they_are_left_out_and_named(self, tmp_path: Path) -> None:
        runs = read_runs(written(tmp_path, "int4,1e8,1e9,nan", "int2,1e8,2e9,inf"))
        assert len(runs) == 36
        found = fit(runs, find_law("decoupled"), bootstraps=0)
        plain = fit(BASE, find_law("decoupled"), bootstraps=0)
        assert found.objective == pytest.approx(plain.objective, rel=1e-9)
        assert "2 diverged runs left out: runs.csv:38 (loss nan), runs.csv:39 (loss inf)" in found.message
        assert runs.select(np.arange(36) < 20).left_out == runs.left_out

    def test_other_bad_cells_stay_errors(self, tmp_path: Path) -> None:
        for row, words in (
            ("int4,1e8,1e9,-inf", "loss is '-inf', not a positive finite number"),
            ("int4,1e8,1e9,-1", "loss is '-1'"),
            ("int4,1e8,nan,3", "tokens is 'nan'"),
            ("int4,inf,1e9,nan", "params is 'inf'"),
            ("int4,1e8,1e9,", "loss is '', not a number"),
        ):
            with pytest.raises(InvalidDocument, match=words):
                read_runs(written(tmp_path, row))

    def test_nothing_but_diverged_runs(self) -> None:
        row = {"params": 1e8, "tokens": 1e9, "loss": float("nan"), "representation": "dense"}
        with pytest.raises(RequestError, match="no run has a finite loss: all 2 diverged"):
            runs_from_rows([row, row], "a store")
