"""Composition held to runs: parts are fitted where they stand alone, and predict the runs with both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import RequestError
from ..base import BACKWARD, Law
from ..fit import fit
from ..result import Fit
from ..runs import Array, Runs


@dataclass(frozen=True)
class HeldOutRuns:
    """Runs in which both parts compress, and what the fit of all other runs says of them.

    fit: of the runs with one part or none; errors: predicted/measured - 1 of each held-out loss; without: the
    same when nothing were known of the parts, every multiplier 1.
    """

    fit: Fit
    runs: Runs
    errors: Array
    without: Array

    @property
    def mean(self) -> float:
        """Mean relative error of the loss."""
        return float(np.abs(self.errors).mean())

    @property
    def largest(self) -> float:
        """Largest relative error of the loss."""
        return float(np.abs(self.errors).max())

    @property
    def bias(self) -> float:
        """Mean relative error with its sign; above 0 the parts together cost less than predicted."""
        return float(self.errors.mean())

    @property
    def mean_without(self) -> float:
        """Mean relative error of the loss without multipliers."""
        return float(np.abs(self.without).mean())


def composition_test(runs: Runs, law: Law, *, delta: float = 1e-4) -> HeldOutRuns:
    """Fit a law to the runs whose forward or backward pass is dense; predict those where neither is.

    The law gives N a multiplier by representation, and D one by the column `backward`. delta: of the Huber
    loss.
    Raises RequestError for a law without both, for runs without the column, when no run has both parts, and
    when a part of a run with both has no runs of its own.
    """
    if not (law.rho and law.rho_data):
        raise RequestError(
            f"the {law.name} law has no multiplier for each of two parts",
            advice="take one with rho on N and rho_D on D: gamma",
        )
    if BACKWARD.name not in runs.columns:
        raise RequestError(f"the runs have no column {BACKWARD.name!r}", where=runs.data, advice="add it")
    forward, backward = np.array(runs.representation), np.array(runs.columns[BACKWARD.name])
    both = (forward != law.baseline) & (backward != str(BACKWARD.default))
    if not both.any():
        raise RequestError(
            "no run compresses both parts, so nothing is held out", where=runs.data, advice="train some"
        )
    fitted, held = fit(runs.select(~both), law, delta=delta, bootstraps=0), runs.select(both)
    pairs = list(zip(forward[both].tolist(), backward[both].tolist(), strict=True))
    parts = [_multipliers(fitted, *pair) for pair in pairs]
    return HeldOutRuns(
        fitted, held, _errors(fitted, held, parts), _errors(fitted, held, [(1.0, 1.0)] * len(held))
    )


def _errors(fitted: Fit, held: Runs, parts: list[tuple[float, float]]) -> Array:
    """Relative errors of predicted losses at the multipliers (rho, rho_D) of each run."""
    runs = zip(held.params.tolist(), held.tokens.tolist(), parts, strict=True)
    predicted = [fitted.law.loss(fitted.values, n, d, rho, {"rho_D": data}) for n, d, (rho, data) in runs]
    return np.asarray(np.array(predicted) / held.loss - 1)


def _multipliers(fitted: Fit, forward: str, backward: str) -> tuple[float, float]:
    """rho and rho_D of two parts."""
    name = f"rho_D[{backward}]"
    if name not in fitted.parameters:
        raise RequestError(
            f"no run has {backward!r} as its only part",
            where=fitted.data,
            advice="leave its pairs out, or train it",
        )
    return fitted.multiplier(forward).value, fitted.parameters[name].value
