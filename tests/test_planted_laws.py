"""Every law: exact derivatives, and planted parameters that come back without noise."""

from __future__ import annotations

import numpy as np
import pytest

from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import LAWS, find_law
from rhoc.runtime.laws.base import Law, Parameter
from rhoc.runtime.laws.fit import fit
from rhoc.runtime.laws.objective import Objective, Residual
from rhoc.runtime.laws.terms import Terms

from .planted_laws import BASE, PLANTED, Planted
from .simulated import simulated


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.law)
class TestEveryLaw:
    @pytest.mark.parametrize("residuals", list(Residual))
    def test_derivatives_against_finite_differences(self, planted: Planted, residuals: Residual) -> None:
        runs = planted.runs()
        objective = Objective(Terms(find_law(planted.law), runs), runs.loss, 0.3, residuals)
        random, terms = np.random.default_rng(1), objective.terms
        coefficients = np.where(terms.fixed, 1.0, random.uniform(0.3, 2.0, len(terms.coefficients)))
        outer = [
            p.low + 0.3 * (p.high - p.low) if p.low <= 0 else (p.low * p.high) ** 0.5 for p in terms.outer
        ]
        point = np.concatenate([coefficients, outer])[None]
        weights = random.uniform(0.5, 2.0, (1, len(runs)))
        found = objective.expand(point, weights)
        for i, unit in enumerate(np.eye(objective.size)):
            step = 1e-6 * max(1.0, abs(point[0, i]))
            ahead, behind = point + step * unit, point - step * unit
            slope = (objective.value(ahead, weights) - objective.value(behind, weights))[0] / (2 * step)
            assert found.gradient[0, i] == pytest.approx(slope, rel=1e-5, abs=1e-6)
            ends = (objective.expand(ahead, weights).gradient - objective.expand(behind, weights).gradient)[0]
            scale = np.abs(ends / (2 * step)).max()
            np.testing.assert_allclose(
                found.hessian[0, i], ends / (2 * step), rtol=1e-4, atol=1e-5 * scale + 1e-6
            )

    def test_planted_parameters_come_back(self, planted: Planted) -> None:
        found = fit(planted.runs(noise=0.0), find_law(planted.law), bootstraps=0)
        for name, value in planted.truth.items():
            assert found.values[name] == pytest.approx(value, rel=1e-3), name
        for name, value in (planted.rho or {}).items():
            assert found.rho[name].value == pytest.approx(value, rel=1e-4)
        assert found.rms_log_error < 1e-9

    def test_the_loss_of_a_law_is_its_formula(self, planted: Planted) -> None:
        """`Law.loss`, by which fits predict, against the planted formula written out by hand."""
        runs = planted.runs(noise=0.0)
        law = find_law(planted.law)
        for i in range(0, len(runs), 7):
            cells = {c: cells[i] for c, cells in runs.columns.items() if cells[i]}
            features = {c: v if c in ("backward", "family_weight") else float(v) for c, v in cells.items()}
            name = runs.representation[i]
            rho = (
                law.price(planted.truth, features)
                if law.prices_features
                else (planted.rho or {}).get(name, 1.0)
            )
            if law.rho_data and cells["backward"] != "dense":
                features["rho_D"] = planted.truth[f"rho_D[{cells['backward']}]"]
            given = {**features, "representation": name}
            loss = law.loss(planted.truth, runs.params[i], runs.tokens[i], rho, given)
            assert loss == pytest.approx(runs.loss[i], rel=1e-12)


def test_every_law_is_planted() -> None:
    missing = {law.name for law in LAWS} - {planted.law for planted in PLANTED}
    assert missing == {"average-parameters"}  # chinchilla in another column, below


def test_the_average_count_is_what_counts() -> None:
    planted = next(p for p in PLANTED if p.law == "chinchilla")
    runs = planted.runs(noise=0.0)
    wide = type(runs)(
        2.0 * runs.params, runs.tokens, runs.loss, runs.representation,
        {"average_params": tuple(str(n) for n in runs.params)},
    )  # fmt: skip
    found = fit(wide, find_law("average-parameters"), bootstraps=0)
    assert found.values["A"] == pytest.approx(BASE["A"], rel=1e-3)


class TestDeclarations:
    def declared(self, formula: str, *more: Parameter) -> Law:
        names = (Parameter("E"), Parameter("A"), Parameter("alpha", 0.01, 2.0), *more)
        return Law("own", formula, "nowhere", names)

    @pytest.mark.parametrize(
        ("formula", "message"),
        [
            ("L = E + A/N^alpha + __import__('os')", "is not part of the language of formulas"),
            ("L = E + A/N^alpha +", "not a formula"),
            ("L = E + A/M^alpha", "'M' is neither N, D, rho, a parameter nor a column"),
            ("L = E + A/N", "the parameter 'alpha' is not in the formula"),
            ("L = E + A[group]/N^alpha", "'group' is no column of names"),
            ("L = E + A.real/N^alpha", "is not part of the language"),
            ("L = E + A/N^alpha if N else 0", "is not part of the language"),
        ],
    )
    def test_a_formula_that_does_not_hold_together_is_refused(self, formula: str, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            self.declared(formula)

    def test_a_coefficient_that_is_no_factor_is_refused(self) -> None:
        law = self.declared("L = E + (A/N)^alpha")
        with pytest.raises(RequestError, match=r"A is bounded like a coefficient.*no plain factor"):
            fit(simulated(0), law)

    def test_a_term_without_coefficient_and_with_a_minus(self) -> None:
        runs = simulated(0, noise=0.0, rho={"dense": 1.0})
        loss = 3.0 + 500 * runs.params**-0.3 - (runs.tokens / 1e12) ** 0.05
        law = self.declared("L = E + A/N^alpha - (D/1e12)^beta", Parameter("beta", 0.001, 1.0))
        found = fit(type(runs)(runs.params, runs.tokens, loss, runs.representation), law, bootstraps=0)
        assert found.values["beta"] == pytest.approx(0.05, rel=1e-4)
        assert found.values["A"] == pytest.approx(500, rel=1e-3)
