"""Published fits held against runs: how far are their constants from the optimum, and what does that cost?

Losses are those of the law itself, and the objective is summed here: the solver is not its own witness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import RequestError
from ..runtime.laws import Law, find_law
from ..runtime.laws.base import BACKWARD, FREE
from ..runtime.laws.fit import fit
from ..runtime.laws.outcome import Outcome
from ..runtime.laws.published import PublishedFit, PublishedObjective
from ..runtime.laws.result import Fit
from ..runtime.laws.runs import Array, Runs
from .hints import did_you_mean
from .published_fits import published_fits

HEADINGS = ("published fit", "law", "runs", "objective", "optimum", "ratio", "finding")

_DATA = "rho_D["
_FAR = 2.0  # standard errors that are worth a word
_BETTER = 1e-6  # relative: published constants this far below the optimum are not rounding


def check_published(
    runs: Runs, law_or_name: str | None = None, *, bootstraps: int = 200, seed: int = 0
) -> list[dict[str, Any]]:
    """Every published fit that the runs can test, one row of plain JSON each, the nearest to them first.

    law_or_name: only fits of this law, or the fit of this name; bootstraps: draws for the standard errors of
    the optimum. A row has the objective at the published constants and at the optimum, over the runs that the
    published fit can speak of and under its own residuals and delta; `constants` and `multipliers` with the
    distance of each in standard errors; and a sentence. A fit that lacks constants is compared by the others.
    Units of N and D are not converted: a row names those of the published fit.
    Raises RequestError when no published fit can be tested, with the reasons.
    """
    checks = _Checks(runs, bootstraps, seed)
    rows, reasons = [], []
    for published in _asked(law_or_name):
        try:
            rows.append(checks.row(published))
        except RequestError as error:
            reasons.append(f"{published.name}: {error.message}")
    if not rows:
        raise RequestError(
            f"no published fit can be tested on these runs ({'; '.join(reasons)})",
            where=runs.data,
            advice="add the columns that a law reads, or use the names of representations that it knows",
        )
    return sorted(rows, key=lambda row: np.inf if row["ratio"] is None else row["ratio"])


def check_table(rows: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    """Rows of `check_published` as cells under HEADINGS."""
    numbers = ("objective", "optimum", "ratio")
    return [
        [
            row["fit"],
            row["law"],
            f"{row['runs']} of {row['of']}",
            *(_short(row[name]) for name in numbers),
            row["sentence"],
        ]
        for row in rows
    ]


@dataclass(frozen=True)
class _Constants:
    """What a law is evaluated at: parameters, rho by representation, rho_D by backward format."""

    parameters: Mapping[str, float]
    rho: Mapping[str, float]
    rho_data: Mapping[str, float]

    @classmethod
    def of_published(cls, published: PublishedFit) -> _Constants:
        """Those that a source gives."""
        return cls(published.values, _values(published.rho), _values(published.rho_data))

    @classmethod
    def of_fit(cls, found: Fit) -> _Constants:
        """Those of an optimum."""
        data = {name[len(_DATA) : -1]: v for name, v in found.values.items() if name.startswith(_DATA)}
        return cls(found.values, _values(found.rho), data)


@dataclass
class _Checks:
    """Checks on one set of runs; every optimum is searched once."""

    runs: Runs
    bootstraps: int
    seed: int
    _fits: dict[tuple[object, ...], Fit] = field(default_factory=dict)

    def row(self, published: PublishedFit) -> dict[str, Any]:
        """One published fit against the runs. Raises RequestError when they cannot test it."""
        law, objective = find_law(published.law), published.objective or PublishedObjective()
        _check_columns(law, self.runs)
        losses, spoken = self._spoken(published, law)
        ours = self._fit(law, spoken, objective)
        at = best = None
        if losses is not None:
            measured = self.runs.loss[spoken]
            at = _objective(losses[spoken], measured, objective)
            optimum = _losses(law, _Constants.of_fit(ours), self.runs)
            best = _objective(optimum[spoken], measured, objective)
        row = {
            "fit": published.name,
            "law": published.law,
            "arxiv": published.arxiv,
            "published_data": published.data,
            "unit_of_params": published.unit_of_params,
            "unit_of_tokens": published.unit_of_tokens,
            "runs": int(spoken.sum()),
            "of": len(self.runs),
            "residuals": objective.residuals.value,
            "delta": objective.delta if np.isfinite(objective.delta) else None,
            "objective": at,
            "optimum": best,
            "ratio": at / best if at is not None and best else None,
            "printed": objective.value,
            "printed_runs": objective.runs,
            "constants": _distances(_published_constants(published), ours),
            "multipliers": _distances(_published_multipliers(published), ours),
            "outcome": ours.outcome.value,
            "message": ours.message,
        }
        return row | {"sentence": _sentence(row, law)}

    def _spoken(self, published: PublishedFit, law: Law) -> tuple[Array | None, NDArray[np.bool_]]:
        """Losses at the published constants, None where some are missing, and the runs it can speak of."""
        losses = None
        spoken = np.ones(len(self.runs), dtype=bool)
        if not published.missing:
            losses = _losses(law, _Constants.of_published(published), self.runs)
            spoken = np.isfinite(losses)
        elif not _in_common(published, self.runs):
            absent = ", ".join(published.missing)
            raise RequestError(
                f"it does not publish {absent}, and has no multiplier of a format of these runs"
            )
        if spoken.sum() < len(law.parameters) + 2:
            raise RequestError(f"it can speak of {spoken.sum()} of these runs, which is too few")
        return losses, spoken

    def _fit(self, law: Law, spoken: NDArray[np.bool_], objective: PublishedObjective) -> Fit:
        key = (law.name, spoken.tobytes(), objective.residuals, objective.delta)
        if key not in self._fits:
            self._fits[key] = fit(
                self.runs.select(spoken),
                law,
                delta=objective.delta,
                bootstraps=self.bootstraps,
                seed=self.seed,
                residuals=objective.residuals,
            )
        return self._fits[key]


def _asked(law_or_name: str | None) -> list[PublishedFit]:
    """The published fits of a law, or the one of a name; all without either."""
    fits = published_fits()
    found = [f for f in fits.values() if law_or_name in (None, f.law, f.name)]
    if not found:
        known = dict.fromkeys([*(f.law for f in fits.values()), *fits])
        raise RequestError(
            f"no published fit, and no law of one, is called {law_or_name!r}",
            advice=did_you_mean(str(law_or_name), known),
        )
    return found


def _check_columns(law: Law, runs: Runs) -> None:
    """Raises RequestError when the runs lack a required column, or all those that the law is about."""
    absent = [column for column in law.columns if column.name not in runs.columns]
    required = [column for column in absent if column.default is None]
    if required or (absent and len(absent) == len(law.columns)):
        raise RequestError(f"the runs have no column {(required or absent)[0].name!r}")


def _in_common(published: PublishedFit, runs: Runs) -> bool:
    """Whether the fit has a multiplier of a representation of these runs, forward or backward."""
    forward, backward = set(published.rho), set(published.rho_data)
    return bool(forward & set(runs.names) or backward & set(runs.columns.get(BACKWARD.name, ())))


def _losses(law: Law, constants: _Constants, runs: Runs) -> Array:
    """Loss of every run by the law; not a number where the constants do not know its formats."""
    columns = {c.name: _cells(runs, c.name, c.default) for c in law.every_column}
    backward = _cells(runs, BACKWARD.name, law.baseline)
    found = np.full(len(runs), np.nan)
    for i, representation in enumerate(runs.representation):
        features = {name: cells[i] for name, cells in columns.items()} | {"representation": representation}
        rho = _rho(law, constants, features)
        rho_data = _known(constants.rho_data if law.rho_data else {}, backward[i], law.baseline)
        if rho > 0 and rho_data > 0 and _has_entries(law, constants, representation):
            features |= {"rho_D": rho_data}
            found[i] = law.loss(constants.parameters, runs.params[i], runs.tokens[i], rho, features)
    return found


def _rho(law: Law, constants: _Constants, features: Mapping[str, Any]) -> float:
    """rho of a run. A law without rho and without columns speaks of the baseline alone."""
    if law.rho not in ("", FREE):
        return float(law.price(constants.parameters, features))
    if law.rho == "" and law.columns:
        return 1.0
    return _known(constants.rho if law.rho else {}, features["representation"], law.baseline)


def _known(multipliers: Mapping[str, float], name: str, baseline: str) -> float:
    return 1.0 if name == baseline else multipliers.get(name, np.nan)


def _has_entries(law: Law, constants: _Constants, representation: str) -> bool:
    """Whether every parameter with one value per representation has one for this."""
    return representation == law.baseline or all(
        f"{parameter.name}[{representation}]" in constants.parameters
        for parameter in law.parameters
        if parameter.column == "representation"
    )


def _cells(runs: Runs, name: str, default: float | str | None) -> Sequence[Any]:
    if isinstance(default, str):
        return [cell.strip() or default for cell in runs.columns.get(name, ("",) * len(runs))]
    return list(runs.numbers(name, default))


def _objective(losses: Array, measured: Array, objective: PublishedObjective) -> float:
    """The sum of Huber losses of residuals: squares within delta, straight lines beyond."""
    logs = objective.residuals.value == "log"
    distance = np.abs(np.log(losses / measured) if logs else losses - measured)
    near = distance <= objective.delta
    lines = objective.delta * (distance[~near] - objective.delta / 2)
    return float(np.sum(distance[near] ** 2) / 2 + np.sum(lines))


def _published_constants(published: PublishedFit) -> dict[str, float]:
    """Constants under the names that a fit has for them; of families, those of scalar formats."""
    family = published.families.get("scalar")
    return published.values | ({"F": family.slope.value, "C": family.curvature.value} if family else {})


def _published_multipliers(published: PublishedFit) -> dict[str, float]:
    forward = {f"rho[{name}]": value for name, value in _values(published.rho).items()}
    return forward | {f"{_DATA}{name}]": value for name, value in _values(published.rho_data).items()}


def _values(estimates: Mapping[str, Any]) -> dict[str, float]:
    return {name: estimate.value for name, estimate in estimates.items()}


def _distances(published: Mapping[str, float], ours: Fit) -> dict[str, dict[str, float | None]]:
    """Of every name that both have: published, ours, our standard error, and their distance in it."""
    estimates = {f"rho[{name}]": estimate for name, estimate in ours.rho.items()} | dict(ours.parameters)
    found = {}
    for name in (name for name in published if name in estimates):
        value, error = estimates[name].value, estimates[name].standard_error
        distance = (published[name] - value) / error if error and np.isfinite(error) else None
        found[name] = {
            "published": published[name],
            "ours": value,
            "standard_error": error,
            "distance": distance,
        }
    return found


def _sentence(row: Mapping[str, Any], law: Law) -> str:
    """What a row says, in words."""
    scales = {
        p.name for p in law.parameters if p.is_coefficient and p.name != "E"
    }  # mean little by themselves
    telling = {
        name: found for name, found in row["constants"].items() if name.partition("[")[0] not in scales
    }
    parts = [_farthest(telling, "constant"), _farthest(row["multipliers"], "multiplier")]
    if row["objective"] is not None:
        parts.append(f"objective {_short(row['objective'])} against {_short(row['optimum'])}")
        if row["objective"] < row["optimum"] * (1 - _BETTER):
            parts.append("the optimum found here is not one, for the published constants are better")
    if row["printed"] is not None:
        parts.append(f"printed {_short(row['printed'])} on {row['printed_runs']} runs")
    if row["outcome"] != Outcome.CONVERGED.value:
        parts.append(f"the optimum is {row['outcome'].replace('_', ' ')}")
    return "; ".join(part for part in parts if part)


def _farthest(distances: Mapping[str, Mapping[str, float | None]], kind: str) -> str:
    known = [(abs(d["distance"]), name) for name, d in distances.items() if d["distance"] is not None]
    if not known:
        return ""
    far, name = max(known)
    if far < _FAR:
        return f"every {kind} is within {_FAR:g} standard errors of the optimum, {name} farthest at {far:.1f}"
    return f"{name} is {far:.1f} standard errors from the optimum"


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
