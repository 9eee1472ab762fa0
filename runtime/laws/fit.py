"""Fit a law to runs: profile map, Newton, identification, bootstrap, verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import RequestError
from .backtest import backtest
from .base import RHO, Law
from .bootstrap import Draws, interval
from .grid import ProfileMap, profile_map
from .identify import unidentified
from .newton import Solution, descend, minimise
from .objective import Objective, Residual
from .oddities import oddities
from .outcome import Findings
from .result import Certificate, Estimate, Fit, Range, rho_column
from .runs import Array, Runs
from .terms import Reading, Terms
from .uncertainty.resampling import resample

_OUTLIER = 6.0  # robust standard deviations
_LEAST_SPREAD = 1e-4  # of log residuals; below it nothing stands out
_LOWER = 12  # cells, at most, that are followed where they are lower than what was found
_SAME = 1e-6  # relative difference of objectives that counts as the same optimum
_ROUNDING, _LEAST = 1e-9, 1e-20  # and one, relative and absolute, that rounding makes


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # hopeless points overflow, and are not kept
def fit(
    runs: Runs,
    law: Law,
    *,
    delta: float = 1e-3,
    bootstraps: int = 1000,
    seed: int = 0,
    iterations: int = 1000,
    residuals: Residual = Residual.LOG,
    resampling: str = "case",
) -> Fit:
    """The global optimum of a law on runs, with bootstrap intervals and an outcome that says what to do.

    delta: where the Huber loss of a residual turns linear (infinite: least squares); bootstraps: draws (0 for
    none), by `resampling`: case, wild or parametric; residuals: logarithmic or linear ones. A column
    `weight` of the runs counts each so often. Deterministic.
    Raises RequestError when there are no runs, or when the law cannot be set up for them.
    """
    if not len(runs):
        raise RequestError(
            "there are no runs to fit", where=runs.data, advice="train some first: rhoc sweep run"
        )
    if not delta > 0:
        raise RequestError(
            f"delta is {delta:g}, not a positive number", advice="1e-3 is usual for log losses"
        )
    counts = runs.numbers("weight", 1.0)
    objective = Objective(Terms(law, runs), runs.loss, delta, residuals, counts)
    grid = profile_map(objective)
    polished = _polished(objective, grid, iterations)
    best = _best(polished)
    point = polished.points[best]
    certificate = _certificate(grid, polished)
    num_parameters = objective.degrees
    enough = len(runs) >= num_parameters + 2
    count = len(objective.terms.coefficients)
    reading = objective.terms.read(point[None, :count], point[None, count:])
    draws = resample(runs, objective, point, bootstraps if enough else 0, seed, resampling)
    logs = np.log(objective.predict(point[None])[0] / runs.loss)
    squared = float(np.square(logs).mean())
    findings = Findings(
        num_runs=len(runs),
        num_parameters=num_parameters,
        solved=bool(polished.solved[best]),
        global_minimum=certificate.below_every_cell,
        evidence=certificate.evidence,
        unidentified=unidentified(runs, objective, point) if enough else (),
        at_bound=_at_bound(objective, point, reading),
        outliers=_outliers(runs, logs),
        cautions=_cautions(runs, draws, bootstraps if enough else 0),
    )
    return Fit(
        law=law,
        parameters={name: _estimate(value, draws, name) for name, value in reading.parameters.items()},
        rho={name: _estimate(value, draws, rho_column(name)) for name, value in reading.rho.items()},
        objective=float(polished.values[best]),
        delta=delta,
        rms_log_error=squared**0.5,
        bic=float(len(runs) * np.log(max(squared, 1e-300)) + num_parameters * np.log(len(runs))),
        aicc=_aicc(len(runs), num_parameters, squared),
        num_runs=len(runs),
        num_parameters=num_parameters,
        outcome=findings.outcome,
        message=findings.message,
        residuals=tuple(logs.tolist()),
        residual_kind=residuals.value,
        unit_of_params=runs.unit_of_params,
        data=runs.data,
        range=Range(_ends(runs.params), _ends(runs.tokens), _ends(runs.tokens_per_param)),
        certificate=certificate,
        draws=draws,
        backtest=backtest(objective, point) if enough and bootstraps else None,
        columns=_columns(runs, law),
    )


def _polished(objective: Objective, grid: ProfileMap, iterations: int) -> Solution:
    """Minima from the map's starts. Wide Huber zones may lead all of them past a basin that outliers make
    narrow; where cells are lower than every minimum, these are followed without."""
    weights = np.ones((1, len(objective.loss)))
    found = descend(objective, grid.starts(), weights, iterations=iterations)
    cells = grid.objective.ravel()
    lower = np.argsort(cells, kind="stable")[:_LOWER]
    lower = lower[cells[lower] < found.values.min() * (1 - _SAME) - _LEAST]
    if not lower.size:
        return found
    more = minimise(objective, grid.points[lower], weights, iterations=iterations)
    return Solution(
        np.concatenate([found.points, more.points]),
        np.concatenate([found.values, more.values]),
        np.concatenate([found.solved, more.solved]),
    )


def _best(polished: Solution) -> int:
    """The lowest point; of those that rounding alone sets apart, one that met its tolerance."""
    values = polished.values
    near = np.flatnonzero(values <= values.min() * (1 + _ROUNDING) + _LEAST)
    return int(min(near, key=lambda i: (not polished.solved[i], values[i])))


def _columns(runs: Runs, law: Law) -> dict[str, dict[str, float | str]]:
    """The columns that the loss depends on, of representations all of whose runs have the same."""
    found: dict[str, dict[str, float | str]] = {}
    for column in law.reads:
        if isinstance(column.default, str):
            cells = runs.columns.get(column.name, ("",) * len(runs))
            values: Sequence[float | str] = [cell.strip() or column.default for cell in cells]
        else:
            values = runs.numbers(column.name, column.default).tolist()
        of: dict[str, set[float | str]] = {}
        for name, value in zip(runs.representation, values, strict=True):
            of.setdefault(name, set()).add(value)
        for name, seen in of.items():
            if len(seen) == 1:
                found.setdefault(name, {})[column.name] = seen.pop()
    return found


def _estimate(value: Array, draws: Draws, name: str) -> Estimate:
    if len(draws) < 2:
        return Estimate(float(value[0]))
    column = draws.column(name)
    return Estimate(float(value[0]), float(column.std(ddof=1)), interval(column))


def _certificate(grid: ProfileMap, polished: Solution) -> Certificate:
    best = float(polished.values.min())
    near = polished.values <= best * (1 + _SAME) + _LEAST
    return Certificate(
        alpha=tuple(grid.axes[0].tolist()),
        beta=tuple(grid.axes[1].tolist()),
        objective=tuple(tuple(float(f"{cell:.6e}") for cell in row) for row in grid.plane),
        cells=grid.objective.size,
        below_every_cell=best <= float(grid.objective.min()) * (1 + _ROUNDING) + _LEAST,
        starts=len(polished.values),
        agreeing=int(near.sum()),
    )


def _at_bound(objective: Objective, point: Array, reading: Reading) -> tuple[str, ...]:
    """Parameters and multipliers that ended on a bound, with the bound."""
    low, high = objective.bounds
    outer = range(len(objective.terms.coefficients), objective.size)
    found = [f"{objective.names[i]} = {point[i]:g}" for i in outer if not low[i] < point[i] < high[i]]
    found += [f"{objective.names[i]} = 0" for i in range(len(objective.terms.coefficients)) if point[i] <= 0]
    return (
        *found,
        *(f"rho of {name} = {rho[0]:g}" for name, rho in reading.rho.items() if _clipped(float(rho[0]))),
    )


def _clipped(rho: float) -> bool:
    return rho <= RHO.low * (1 + 1e-9) or rho >= RHO.high * (1 - 1e-9)


def _aicc(count: int, parameters: int, squared: float) -> float:
    """n ln(mean squared residual) + 2p + 2p(p + 1)/(n - p - 1) (Hurvich and Tsai, Biometrika 76, 1989)."""
    if count <= parameters + 1:
        return float("inf")
    corrected = 2 * parameters + 2 * parameters * (parameters + 1) / (count - parameters - 1)
    return float(count * np.log(max(squared, 1e-300)) + corrected)


def _outliers(runs: Runs, residuals: Array) -> tuple[str, ...]:
    """The runs that stand out from the others, worst first, at most three."""
    scale = max(1.4826 * float(np.median(np.abs(residuals))), _LEAST_SPREAD)
    size = np.abs(residuals)
    worst = [int(i) for i in np.argsort(-size, kind="stable")[:3] if size[i] > _OUTLIER * scale]
    return tuple(
        f"{runs.addresses[i]} ({runs.representation[i]}, N {runs.params[i]:.3g}, D {runs.tokens[i]:.3g}):"
        f" measured {100 * np.expm1(-residuals[i]):+.2f} % from the law"
        for i in worst
    )


def _cautions(runs: Runs, draws: Draws, asked: int) -> tuple[str, ...]:
    """Limits of the intervals that a reader has to know."""
    found = oddities(runs)
    single = [name for name in runs.names if runs.representation.count(name) == 1]
    if asked and single:
        found.append(f"intervals leave out the noise of representations with one run: {', '.join(single)}")
    if draws.discarded > 0.02 * max(asked, 1):
        found.append(f"{draws.discarded} of {asked} bootstrap draws did not converge and are left out")
    return tuple(found)


def _ends(column: Array) -> tuple[float, float]:
    return float(column.min()), float(column.max())
