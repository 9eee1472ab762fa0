"""Fitting a law with its intervals: ours against the way it is published, by thousands of starts.

The published way is 4,500 starts of L-BFGS-B with numeric gradients, then 1,000 refits of resampled runs, here
by BFGS with exact gradients, which are kinder than what is published. The error is by what part the objective
of a method is above the best that is known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import scipy.ndimage
import scipy.optimize
import scipy.stats  # noqa: F401
from timing import Case, Method

from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.fit import fit
from rhoc.runtime.laws.runs import Runs

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests import chinchilla_by_hand as by_hand
from tests.planted_laws import PLANTED
from tests.public_runs import FOLDER

CHINCHILLA, BEST = FOLDER / "chinchilla_runs.csv", 1.0182739976e-3


def cases(quick: bool) -> Iterator[Case]:
    """The published way on the runs of the Chinchilla paper, where they are; then every law."""
    every, draws = (100, 10) if quick else (1, 1000)
    if CHINCHILLA.exists():
        yield _published(read_runs(CHINCHILLA), every, draws)
    else:
        print(f"  no {CHINCHILLA.name}: `python tests/public_runs.py` fetches it", file=sys.stderr)
    methods = {p.law: _ours(p.law, p.runs(), draws, {}) for p in PLANTED}
    yield Case(f"a fit with {draws} draws, planted runs", methods, rounds=1 if quick else 3)


def _published(runs: Runs, every: int, draws: int) -> Case:
    errors: dict[str, float] = {}
    fit(runs, find_law("chinchilla"), bootstraps=2)
    value = by_hand.objective(runs)

    def published(call: int) -> None:
        best = by_hand.best_of(runs, islice(by_hand.starts(), 0, None, every))
        by_hand.draws(runs, best.x, draws)
        errors[name] = value(best.x) / BEST - 1

    name = f"{4500 // every} starts, {draws} draws by scipy"
    methods = {"fit": _ours("chinchilla", runs, draws, errors), name: published}
    return Case(f"chinchilla, {len(runs)} runs, {draws} draws", methods, errors=errors, rounds=1)


def _ours(law: str, runs: Runs, draws: int, errors: dict[str, float]) -> Method:
    def run(call: int) -> None:
        found = fit(runs, find_law(law), bootstraps=draws)
        errors["fit"] = abs(found.objective / BEST - 1)

    return run
