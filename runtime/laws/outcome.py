"""How a fit ended, as a value that says what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The ways a fit can end, from the gravest to the best."""

    TOO_FEW_RUNS = "too_few_runs"
    NOT_CONVERGED = "not_converged"
    NOT_IDENTIFIED = "not_identified"
    AT_BOUND = "at_bound"
    CONVERGED = "converged"

    @property
    def advice(self) -> str:
        """The next step."""
        return _ADVICE[self]

    @property
    def usable(self) -> bool:
        """Whether predictions and multipliers of such a fit carry intervals."""
        return self not in (Outcome.TOO_FEW_RUNS, Outcome.NOT_CONVERGED)


_ADVICE = {
    Outcome.TOO_FEW_RUNS: "add runs, or fit a law with fewer parameters",
    Outcome.NOT_CONVERGED: "look at the runs with the largest residuals, or fit another law",
    Outcome.NOT_IDENTIFIED: (
        "multipliers and predictions within the range of the runs hold; do not read this parameter, or what"
        " trades off against it, on its own"
    ),
    Outcome.AT_BOUND: "a value at a bound is a limit, not an estimate; check its runs, or use another law",
    Outcome.CONVERGED: "compare laws by bic, and predict within the range of the runs first",
}


@dataclass(frozen=True)
class Unidentified:
    """A parameter that the runs do not determine: its 95 % profile interval, and what is to blame.

    ridge: what changes along with it, in words; extra_runs: the two that would tell most, in words.
    """

    parameter: str
    low: float
    high: float
    reasons: tuple[str, ...]
    remedies: tuple[str, ...]
    ridge: str = ""
    extra_runs: str = ""

    def __str__(self) -> str:
        why = " and because ".join(self.reasons) or "the runs are too few, or too noisy, for this law"
        text = (
            f"{self.parameter} is not identified because {why}: any {self.parameter} from {self.low:.3g} to"
            f" {self.high:.3g} fits as well as the noise allows"
        )
        text += f" ({self.ridge})" if self.ridge else ""
        text += f"; to know it, add {' and '.join(self.remedies)}" if self.remedies else ""
        return text + (f"; two runs that tell most: {self.extra_runs}" if self.extra_runs else "")


@dataclass(frozen=True)
class Findings:
    """What was found about a fit, from which its outcome and message follow.

    solved: the solver met its tolerance; global_minimum: no grid cell is better; evidence: of that, in words.
    """

    num_runs: int
    num_parameters: int
    solved: bool
    global_minimum: bool
    evidence: str = ""
    unidentified: Sequence[Unidentified] = ()
    at_bound: Sequence[str] = ()
    outliers: Sequence[str] = ()
    cautions: Sequence[str] = ()

    @property
    def outcome(self) -> Outcome:
        """The gravest finding decides."""
        if self.num_runs < self.num_parameters + 2:
            return Outcome.TOO_FEW_RUNS
        if not (self.solved and self.global_minimum):
            return Outcome.NOT_CONVERGED
        if self.unidentified:
            return Outcome.NOT_IDENTIFIED
        return Outcome.AT_BOUND if self.at_bound else Outcome.CONVERGED

    @property
    def message(self) -> str:
        """What happened, and the next step."""
        outcome = self.outcome
        parts = [self._headline(outcome), outcome.advice]
        if outcome is Outcome.NOT_IDENTIFIED and self.at_bound:
            parts.append("at a bound: " + ", ".join(self.at_bound))
        if self.outliers:
            parts.append("largest residuals: " + ", ".join(self.outliers))
        return "; ".join([*parts, *self.cautions])

    def _headline(self, outcome: Outcome) -> str:
        if outcome is Outcome.TOO_FEW_RUNS:
            needed = self.num_parameters + 2
            return f"{self.num_runs} runs for {self.num_parameters} parameters; at least {needed} are needed"
        if outcome is Outcome.NOT_CONVERGED:
            return (
                "the solver ran out of iterations"
                if not self.solved
                else "a grid cell is better than the fit"
            )
        if outcome is Outcome.NOT_IDENTIFIED:
            return "; ".join(str(finding) for finding in self.unidentified)
        if outcome is Outcome.AT_BOUND:
            return "at a bound: " + ", ".join(self.at_bound)
        found = f"{self.num_parameters} parameters from {self.num_runs} runs, at the global optimum"
        return f"{found} ({self.evidence})" if self.evidence else found
