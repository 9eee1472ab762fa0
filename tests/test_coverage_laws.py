"""Nominal 90 % intervals hold 85 to 95 % of planted truths, for every law on a design that identifies it.

Every simulated set is fitted from the planted optimum: what is measured is the interval, not the search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.bootstrap import interval
from rhoc.runtime.laws.grid import profile_map
from rhoc.runtime.laws.newton import descend
from rhoc.runtime.laws.objective import Objective
from rhoc.runtime.laws.terms import Terms
from rhoc.runtime.laws.uncertainty.profile import profile_intervals
from rhoc.runtime.laws.uncertainty.quantities import quantities
from rhoc.runtime.laws.uncertainty.resampling import RESAMPLINGS
from rhoc.runtime.laws.uncertainty.sandwich import sandwich

from .planted_laws import PLANTED, Planted

NOISE = {"floating-point": 1e-5}  # its form distinguishes formats by little; 1e-3 leaves delta and nu free
SETS, DRAWS = 200, 300


@dataclass(frozen=True)
class Study:
    """Simulated sets of one design: objectives with their optima, and the true values by name."""

    planted: Planted
    objectives: list[Objective]
    points: np.ndarray
    truth: dict[str, float]

    @property
    def runs(self) -> object:
        return self.objectives[0].terms.runs

    def coverage(self, kind: str, sets: int) -> dict[str, float]:
        """Part of the sets whose interval of a kind holds the truth, of every quantity."""
        hits = {name: 0 for name in self.truth}
        for number in range(sets):
            ends = self.intervals(kind, number)
            for name, value in self.truth.items():
                hits[name] += ends[name][0] <= value <= ends[name][1]
        return {name: count / sets for name, count in hits.items()}

    def intervals(self, kind: str, number: int) -> dict[str, tuple[float, float]]:
        """Of one set."""
        objective, point = self.objectives[number], self.points[number]
        if kind == "sandwich":
            found = sandwich(objective, point)
            return {name: found.interval(name, 0.9) for name in self.truth}
        if kind == "profile":
            return profile_intervals(objective, point, 0.9, list(self.truth))
        points, _ = RESAMPLINGS[kind](objective.terms.runs, objective, point, DRAWS, number)
        drawn = quantities(objective, points)
        return {name: interval(drawn[name], 0.9) for name in self.truth}


def study(planted: Planted, sets: int, tailed: bool = False) -> Study:
    """Sets with normal log noise, or with that of Student's t of 3 degrees of freedom."""
    runs = planted.runs(noise=0.0)
    clean = Objective(Terms(find_law(planted.law), runs), runs.loss, 1e-3)
    polished = descend(clean, profile_map(clean).starts(), np.ones((1, len(runs))))
    start = polished.points[int(np.argmin(polished.values))]
    random, size = np.random.default_rng(1), NOISE.get(planted.law, 1e-3)
    errors = random.standard_t(3, (sets, len(runs))) if tailed else random.normal(size=(sets, len(runs)))
    noisy = replace(clean, loss=runs.loss * np.exp(size * errors))
    found = descend(noisy, np.repeat(start[None], sets, axis=0), np.ones((1, len(runs))))
    assert found.solved.all()
    truth = {**planted.truth, **{f"rho[{name}]": v for name, v in (planted.rho or {}).items() if v != 1.0}}
    for name, value in quantities(clean, start[None]).items():
        assert name not in truth or value[0] == pytest.approx(truth[name], rel=1e-3)
    return Study(planted, [replace(clean, loss=loss) for loss in noisy.loss], found.points, truth)


def planted_law(name: str) -> Planted:
    return next(p for p in PLANTED if p.law == name)


@pytest.mark.parametrize("law", ["chinchilla", "decoupled"])
@pytest.mark.parametrize("kind", ["case", "sandwich"])
def test_two_laws(law: str, kind: str) -> None:
    """100 sets: three standard errors of a coverage of 90 % are 9 %."""
    found = study(planted_law(law), 100).coverage(kind, 100)
    assert min(found.values()) >= 0.81, found
    assert 0.85 <= np.mean(list(found.values())) <= 0.97, found


def test_profiles_of_few_runs() -> None:
    """16 runs for 5 parameters: Student's t, not a chi-squared."""
    found = study(planted_law("chinchilla"), 60).coverage("profile", 60)
    assert min(found.values()) >= 0.8, found
    assert 0.84 <= np.mean(list(found.values())) <= 0.97, found


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.law)
def test_every_law(planted: Planted) -> None:
    """The default, case resampling. Two standard errors of each coverage, over 200 sets, are 4 %."""
    found = study(planted, SETS).coverage("case", SETS)
    print(planted.law, {name: round(value, 3) for name, value in found.items()})
    assert 0.85 <= np.mean(list(found.values())) <= 0.95, found
    assert min(found.values()) >= 0.82, found


@pytest.mark.slow
@pytest.mark.parametrize("law", ["chinchilla", "decoupled", "sparse", "gamma", "data-constrained"])
def test_heavy_tails(law: str) -> None:
    found = study(planted_law(law), SETS, tailed=True).coverage("case", SETS)
    print(law, {name: round(value, 3) for name, value in found.items()})
    assert 0.85 <= np.mean(list(found.values())) <= 0.96, found


def test_a_floor_of_zero() -> None:
    """E = 0, on its bound: intervals start at zero, and their upper ends do not fall below the truth."""
    base = planted_law("chinchilla")
    zero = replace(base, truth={**base.truth, "E": 1e-9})
    made = study(zero, 60)
    ends = [made.intervals("case", i)["E"] for i in range(60)]
    assert np.mean([low <= 1e-6 for low, _ in ends]) >= 0.8
    assert all(high >= 0 for _, high in ends)
    assert np.mean([high > 1e-9 for _, high in ends]) >= 0.7
