"""How well a law forecasts the runs of largest compute from the others, one and two steps of budget ahead.

A step is a factor of two in C = 6 N D, or more until it holds three runs: those within it of the largest
budget are left out, then those within it of the largest that remain, too. The same for every law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import RequestError
from .base import Law
from .information import extended, optimum
from .objective import Objective, Residual
from .runs import Array, Runs
from .terms import Flags, Terms

_FACTOR = 2.0  # of compute, from one step to the next
_STEPS = 2
_LEAST = 0.5  # share of the runs that has to be left to fit
_TOLD = 3  # runs that a step leaves out, at least
_SPARE = 2  # runs beyond the number of parameters that a fit needs


@dataclass(frozen=True)
class Step:
    """Runs left out. steps: how many steps of budget; flops: the least of them; held: which, [runs]."""

    steps: int
    flops: float
    held: Flags


def steps_of(runs: Runs) -> tuple[Step, ...]:
    """One step and two, as far as they leave half of the runs and more than one budget."""
    budget = 6.0 * runs.params * runs.tokens
    found: list[Step] = []
    held = np.zeros(len(runs), dtype=bool)
    for step in range(1, _STEPS + 1):
        wanted = int(held.sum()) + _TOLD
        while held.sum() < min(wanted, len(runs)):
            held = held | (budget > budget[~held].max() / _FACTOR)
        if (~held).sum() < _LEAST * len(runs):
            break
        found.append(Step(step, float(budget[held].min()), held.copy()))
    return tuple(found)


def forecast_errors(
    runs: Runs, law: Law, step: Step, *, delta: float, residuals: Residual = Residual.LOG
) -> Array:
    """log predicted - log measured of the runs left out, by a fit to the others, [runs].

    Not a number for runs that were not left out, and for kinds of runs of which the others have none.
    Raises RequestError when the others are too few for the law.
    """
    kept, errors = runs.select(~step.held), np.full(len(runs), np.nan)
    objective = Objective(Terms(law, kept), kept.loss, delta, residuals, kept.numbers("weight", 1.0))
    if len(kept) < objective.degrees + _SPARE:
        raise RequestError(f"{len(kept)} runs are left for {objective.degrees} parameters", where=runs.data)
    whole = Terms(law, runs)
    known = np.isin(whole.index, whole.index[~step.held]).all(axis=1) & step.held
    if known.any():
        asked = runs.select(known)
        wide, point = extended(objective, optimum(objective), asked)
        errors[known] = np.log(wide.predict(point[None])[0][-len(asked) :] / asked.loss)
    return errors
