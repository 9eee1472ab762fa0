"""`rhoc design`: which runs to train next, by what they would tell of a loss, a parameter or a multiplier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...runtime.errors import RequestError
from ...runtime.laws.base import Law
from ...runtime.laws.design import Design, Everything, LossAt, Named, Per, Target
from ...runtime.laws.design import design as design_runs
from ...runtime.laws.result import Fit, rho_column
from ...runtime.laws.runs import Runs

_USUAL, _MOST = 2, 50  # runs
NOTE = (
    "expected standard errors at the fitted law, noise alike in all runs; the error of the law's form is not"
    " in them"
)


def target_of(
    loss_at: Sequence[float] | None = None,
    parameter: str | None = None,
    rho: str | None = None,
    representation: str = "",
) -> Target:
    """The one target that is given: N and D of a loss, a parameter's name, or a representation; none of them
    is all parameters together.

    Raises RequestError for more than one, and for a representation without a loss.
    """
    given = [name for name, value in (("loss", loss_at), ("parameter", parameter), ("rho", rho)) if value]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} are all asked for", advice="ask for one at a time")
    if representation and not loss_at:
        raise RequestError("a representation is given, but no N and D of a loss", advice="give both")
    if loss_at:
        return LossAt(loss_at[0], loss_at[1], representation)
    if rho:
        return Named(rho_column(rho))
    return Named(parameter) if parameter else Everything()


def design(
    runs: Runs,
    law: Law | Fit,
    target: Target,
    *,
    count: int | None = None,
    goal: float | None = None,
    flops: float | None = None,
    formats: Sequence[str] = (),
    per: str = "run",
    delta: float = 1e-3,
) -> dict[str, Any]:
    """The runs to train next as plain JSON; a fit gives its law and delta.

    count: how many, two by default; goal: as many as bring the standard error of the target to it.
    Raises RequestError for a target that the law or the runs do not have, when the runs are too few, and for
    a goal that is out of reach.
    """
    if goal is not None and (count is not None or isinstance(target, Everything)):
        raise RequestError(
            "a standard error to reach is for one quantity, and decides how many runs there are",
            advice="name --rho, --parameter or --loss-at, and leave --count out",
        )
    if isinstance(law, Fit):
        delta, law = law.delta, law.law
    found: Design = design_runs(
        runs, law, target,
        count=_MOST if goal is not None else count or _USUAL,
        flops=flops, formats=formats, per=Per(per), delta=delta, goal=goal,
    )  # fmt: skip
    if goal is not None and not (found.after or 0.0) <= goal:
        raise RequestError(
            f"{_MOST} runs bring the standard error to {found.after:.3g}, not to {goal:g}",
            advice="allow larger runs with --flops, or ask for less",
        )
    return found.to_document() | {"note": NOTE}
