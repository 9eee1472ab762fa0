"""Which runs to train next: those that shrink a given error most, of a loss, a parameter or a multiplier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from ..errors import RequestError
from .base import Law
from .candidates import best_additions, candidates
from .information import Information, information, joined, optimum
from .objective import Objective, Residual
from .predict import check_budget
from .runs import Array, Runs
from .terms import Terms

_SPARE = 2  # runs beyond the number of parameters that a fit needs


class Per(StrEnum):
    """What the gain of a run is divided by: nothing, or its training FLOPs, 6 N D."""

    RUN = "run"
    FLOP = "flop"


class Target(ABC):
    """What is to be known better."""

    @property
    @abstractmethod
    def name(self) -> str:
        """In words."""

    @property
    def asked(self) -> tuple[float, float, str] | None:
        """N, D and the representation of a loss, whose derivatives are wanted."""
        return None

    @abstractmethod
    def gradients(self, known: Information) -> Array:
        """Derivatives of the quantities with respect to a point, [quantities, size].

        Where a loss is asked, its run is the last of the extra ones.
        """


@dataclass(frozen=True)
class LossAt(Target):
    """The loss of a run of N `params` and D `tokens` in a representation, without the noise of that run."""

    params: float
    tokens: float
    representation: str = ""

    @property
    def name(self) -> str:
        return f"loss at N {self.params:.3g}, D {self.tokens:.3g} {self.representation}".rstrip()

    @property
    def asked(self) -> tuple[float, float, str]:
        return self.params, self.tokens, self.representation

    def gradients(self, known: Information) -> Array:
        objective = known.objective
        loss = objective.predict(known.point[None])[0, -1]
        unit = loss if objective.residuals is Residual.LOG else 1.0
        return known.rows[-1:] * unit


@dataclass(frozen=True)
class Named(Target):
    """A parameter of the law, or the multiplier of a representation as `rho[NAME]`."""

    parameter: str

    @property
    def name(self) -> str:
        return self.parameter

    def gradients(self, known: Information) -> Array:
        return known.gradient(self.parameter)[None]


@dataclass(frozen=True)
class Everything(Target):
    """All parameters together: the D-optimal runs."""

    @property
    def name(self) -> str:
        return "all parameters"

    def gradients(self, known: Information) -> Array:
        low, high = known.objective.bounds
        return np.asarray(np.eye(len(low))[low < high])


@dataclass(frozen=True)
class Proposal:
    """A run to train. error: expected standard error of the target once it and those before it are."""

    params: float
    tokens: float
    representation: str
    columns: dict[str, str]
    flops: float
    error: float | None


@dataclass(frozen=True)
class Design:
    """Runs to train next, in order. before: expected standard error of the target without them.

    Errors are None where the target is all parameters, infinite where the runs do not determine it. They
    take the law's form as right, and the noise as alike in all runs.
    """

    target: str
    law: str
    data: str
    value: float | None
    before: float | None
    runs: tuple[Proposal, ...]
    per: Per
    considered: int
    volume: float

    @property
    def after(self) -> float | None:
        """Expected standard error once all of them are trained."""
        return self.runs[-1].error

    def to_document(self) -> dict[str, Any]:
        """As plain JSON; `volume_ratio` is how the volume of the confidence region of the target changes."""
        return {
            "target": self.target,
            "law": self.law,
            "data": self.data,
            "value": self.value,
            "standard_error": _finite(self.before),
            "standard_error_after": _finite(self.after),
            "volume_ratio": self.volume,
            "per": self.per.value,
            "candidates": self.considered,
            "runs": [
                {
                    "params": run.params,
                    "tokens": run.tokens,
                    "representation": run.representation,
                    "columns": run.columns,
                    "flops": run.flops,
                    "standard_error": _finite(run.error),
                }
                for run in self.runs
            ],
        }


def design(
    runs: Runs,
    law: Law,
    target: Target,
    *,
    count: int = 2,
    offered: Runs | None = None,
    flops: float | None = None,
    formats: Sequence[str] = (),
    per: Per = Per.RUN,
    delta: float = 1e-3,
    residuals: Residual = Residual.LOG,
    goal: float | None = None,
) -> Design:
    """The runs to train next so that `target` is known best, by expected information at the fitted law.

    offered: runs to choose from, of kinds that there are (losses are not looked at); by default a grid over N
    and D near the runs, of at most `flops` FLOPs each (default: as the largest run), in `formats` (default:
    all with runs). goal: a standard error; no more runs than reach it, `count` at most.
    Nothing is drawn: the same runs give the same design.
    Raises RequestError for a target that the law or the runs do not have, and when the runs are too few.
    """
    if count < 1:
        raise RequestError(f"{count} runs are asked for", advice="ask for at least one")
    objective = Objective(Terms(law, runs), runs.loss, delta, residuals, runs.numbers("weight", 1.0))
    if len(runs) < objective.degrees + _SPARE:
        raise RequestError(
            f"{len(runs)} runs for {objective.degrees} parameters of the {law.name} law",
            where=runs.data,
            advice=f"train at least {objective.degrees + _SPARE} first, at several N and D",
        )
    choice = candidates(runs, law, flops=flops, formats=formats) if offered is None else offered
    known = information(objective, optimum(objective), _with_question(choice, runs, target))
    gradients = target.gradients(known)
    trained = Information(
        known.objective, known.point, known.matrix, known.rows[: len(choice)], known.variance
    )
    budget = 6.0 * choice.params * choice.tokens

    def best(some: int) -> Sequence[int]:
        return best_additions(trained, gradients, some, flops=budget if per is Per.FLOP else None)

    def reached(some: int) -> bool:
        return goal is not None and trained.standard_error(gradients[0], best(some)) <= goal

    if goal is not None:
        count = min(count, 1 + bisect_left(range(1, count + 1), True, key=reached))
    chosen, single = best(count), len(gradients) == 1
    return Design(
        target=target.name,
        law=law.name,
        data=runs.data,
        value=_value(known, target),
        before=trained.standard_error(gradients[0]) if single else None,
        runs=tuple(
            _proposal(choice, row, trained.standard_error(gradients[0], chosen[: i + 1]) if single else None)
            for i, row in enumerate(chosen)
        ),
        per=per,
        considered=len(choice),
        volume=_volume(trained, gradients, chosen),
    )


def _with_question(choice: Runs, runs: Runs, target: Target) -> Runs:
    """The candidates, and behind them the run whose loss is asked."""
    if target.asked is None:
        return choice
    params, tokens, name = target.asked
    check_budget(params, tokens)
    rows = [i for i, other in enumerate(runs.representation) if other == name or not name]
    if not rows:
        raise RequestError(
            f"no run is of the representation {name!r}",
            where=runs.data,
            advice=f"representations with runs: {', '.join(runs.names)}",
        )
    asked = Runs(
        params=np.array([params]),
        tokens=np.array([tokens]),
        loss=np.ones(1),
        representation=(runs.representation[rows[0]],),
        columns={column: (cells[rows[0]],) for column, cells in runs.columns.items()},
    )
    return joined(choice, asked)


def _value(known: Information, target: Target) -> float | None:
    if target.asked is not None:
        return float(known.objective.predict(known.point[None])[0, -1])
    return known.value(target.name) if target.name in known.names else None


def _proposal(choice: Runs, row: int, error: float | None) -> Proposal:
    params, tokens = float(choice.params[row]), float(choice.tokens[row])
    cells = {name: column[row] for name, column in choice.columns.items() if column[row]}
    return Proposal(params, tokens, choice.representation[row], cells, 6.0 * params * tokens, error)


def _volume(known: Information, gradients: Array, chosen: Sequence[int]) -> float:
    """sqrt(det C V' C' / det C V C'): for one target, the ratio of its standard errors."""
    wanted = gradients / known.scale
    logs = [np.linalg.slogdet(wanted @ known.inverse(rows) @ wanted.T)[1] for rows in ((), chosen)]
    return float(np.exp(0.5 * (logs[1] - logs[0])))


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else value
