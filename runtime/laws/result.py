"""A fit: the frozen result of fitting one law to one set of runs, with uncertainty and certificate."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..digest import digest
from ..errors import RequestError
from . import LAWS, find_law
from .backtest import Backtest
from .base import Features, Law, Number, law_from_document
from .bootstrap import Draws, interval
from .multiplier import Multiplier, Origin
from .outcome import Outcome
from .runs import Array

_VERSION = 1
_RESIDUALS = {"log": "log predicted - log measured", "linear": "predicted - measured"}


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and 95 % percentile interval; None where there are no draws."""

    value: float
    standard_error: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Range:
    """What the runs cover: smallest and largest N, D and D/N."""

    params: tuple[float, float]
    tokens: tuple[float, float]
    tokens_per_param: tuple[float, float]


@dataclass(frozen=True)
class Certificate:
    """Evidence that the optimum is the global one.

    alpha, beta: axes of the profile map; objective: its cells, [alpha][beta], at the best shape parameters;
    below_every_cell: whether the fit is; starts, agreeing: how many cells were polished, and how many ended
    here.
    """

    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    objective: tuple[tuple[float, ...], ...]
    cells: int
    below_every_cell: bool
    starts: int
    agreeing: int

    @property
    def evidence(self) -> str:
        """In words."""
        return f"below all {self.cells} cells of the map; {self.agreeing} of {self.starts} starts end there"


@dataclass(frozen=True)
class Fit:
    """A law fitted to runs.

    parameters and rho carry standard errors and 95 % intervals from the bootstrap `draws`, from which
    predictions and products get theirs. objective: the sum of Huber losses (delta) of `residual_kind`
    residuals. bic: n ln(mean squared log residual) + p ln n; aicc: the same with 2p + 2p(p + 1)/(n - p -
    1), infinite where that has no meaning. residuals: log predicted - log measured, in the order of the runs.
    backtest: how wrong the law's forecasts were inside these runs, for predictions outside of them. columns:
    by representation, what the loss depends on beside N, D and rho, where all runs of it have the same.
    """

    law: Law
    parameters: Mapping[str, Estimate]
    rho: Mapping[str, Estimate]
    objective: float
    delta: float
    rms_log_error: float
    bic: float
    aicc: float
    num_runs: int
    num_parameters: int
    outcome: Outcome
    message: str
    residuals: tuple[float, ...] = field(repr=False)
    unit_of_params: str
    data: str
    range: Range
    certificate: Certificate = field(repr=False)
    draws: Draws = field(repr=False)
    residual_kind: str = "log"
    backtest: Backtest | None = field(default=None, repr=False)
    columns: Mapping[str, Features] = field(default_factory=dict)

    @cached_property
    def origin(self) -> Origin:
        """What every multiplier of this fit carries."""
        values = {name: estimate.value for name, estimate in self.parameters.items()}
        identity = {"law": self.law.name, **self.law.conventions, "objective": self.objective, **values}
        return Origin(
            fit="fit " + digest(identity | {"data": self.data, "runs": self.num_runs, "delta": self.delta}),
            law=self.law.name,
            exponents=values,
            unit_of_params=self.unit_of_params,
            data=self.data,
        )

    @property
    def values(self) -> dict[str, float]:
        """Parameters by name."""
        return {name: estimate.value for name, estimate in self.parameters.items()}

    def multiplier(self, name: str) -> Multiplier:
        """rho of a representation that has runs in this fit. Raises RequestError for any other."""
        self.check_usable()
        if name not in self.rho:
            known = ", ".join(self.rho) or "none, for the law has no multipliers"
            raise RequestError(
                f"no runs of {name!r} in this fit",
                where=self.data,
                advice=f"representations with runs: {known}",
            )
        return self._multiplier(name, self.rho[name].value, self.draws.column(rho_column(name)))

    def priced(self, name: str, features: Features) -> Multiplier:
        """rho of a representation known by its GMSE. Raises RequestError when the law cannot price it."""
        self.check_usable()
        value = float(self.law.price(self.values, features))
        draws = np.broadcast_to(np.asarray(self.law.price(self.drawn, features)), len(self.draws))
        return self._multiplier(name, value, draws)

    def loss(self, params: float, tokens: float, rho: float = 1.0, features: Features | None = None) -> float:
        """Predicted loss in nats per token."""
        return float(self.law.loss(self.values, params, tokens, rho, features))

    @cached_property
    def drawn(self) -> dict[str, Number]:
        """Bootstrap draws of every parameter of the law."""
        return {name: self.draws.column(name) for name in self.parameters}

    @property
    def residual_noise(self) -> Array:
        """Log residuals, scaled up by sqrt(n/(n - p)) for the parameters they were fitted with."""
        spare = max(self.num_runs - self.num_parameters, 1)
        return np.array(self.residuals) * float(np.sqrt(self.num_runs / spare))

    def check_usable(self) -> None:
        """Raises RequestError when the fit is of a kind that supports no statement."""
        if not self.outcome.usable:
            raise RequestError(f"this fit supports no prediction: {self.message}", where=self.data)

    def to_document(self, *, draws: bool = True) -> dict[str, Any]:
        """As plain JSON. Without the draws it is short, and cannot be read back for predictions."""
        estimates = self.parameters.items()
        document = {
            "version": _VERSION,
            "law": self.law.name,
            "conventions": dict(self.law.conventions),
            "declaration": None if _ships(self.law) else self.law.to_document(),
            "formula": self.law.formula,
            "source": self.law.source,
            "parameters": self.values,
            "standard_error": {name: estimate.standard_error for name, estimate in estimates},
            "interval": {name: _list(estimate.interval) for name, estimate in estimates},
            "rho": {
                name: {"value": e.value, "interval": _list(e.interval), "standard_error": e.standard_error}
                for name, e in self.rho.items()
            },
            "objective": self.objective,
            "objective_kind": f"sum over runs of Huber({_RESIDUALS[self.residual_kind]})",
            "residual_kind": self.residual_kind,
            "delta": self.delta,
            "rms_log_error": self.rms_log_error,
            "bic": self.bic,
            "aicc": self.aicc if np.isfinite(self.aicc) else None,
            "n_runs": self.num_runs,
            "n_parameters": self.num_parameters,
            "outcome": self.outcome.value,
            "message": self.message,
            "unit_of_params": self.unit_of_params,
            "data": self.data,
            "range": {name: list(ends) for name, ends in asdict(self.range).items()},
            "residuals": list(self.residuals),
            "certificate": asdict(self.certificate),
            "backtest": None if self.backtest is None else self.backtest.to_document(),
            "columns": {
                name: {column: _text(value) for column, value in features.items()}
                for name, features in self.columns.items()
            },
            "covariance": self._covariance_document(),
        }
        return document | ({"draws": _draws_document(self.draws)} if draws else {})

    @staticmethod
    def from_document(document: Mapping[str, Any], where: str = "fit") -> Fit:
        """The fit a document describes. Raises RequestError, at `where`, when it is no such document."""
        if "draws" not in document:
            raise RequestError(
                "this document has no bootstrap draws, so it is no complete fit",
                where=where,
                advice="save it with its draws",
            )
        if document.get("version") != _VERSION:
            raise RequestError(
                f"fit documents of version {document.get('version')!r} cannot be read", where=where
            )
        try:
            return _read(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(
                f"not a fit document ({type(error).__name__}: {error})",
                where=where,
                advice="write it again with rhoc fit",
            ) from error

    def _covariance_document(self) -> dict[str, Any] | None:
        if len(self.draws) < 2:
            return None
        matrix = [[float(f"{cell:.6e}") for cell in row] for row in self.draws.covariance()]
        return {"names": list(self.draws.names), "matrix": matrix}

    def _multiplier(self, name: str, value: float, draws: Array) -> Multiplier:
        if not len(draws):
            return Multiplier(name, value, self.origin, note="fitted without bootstrap draws")
        covariance = {
            other: float(np.cov(draws, self.draws.column(other))[0, 1]) for other in self.parameters
        }
        return Multiplier(
            name=name,
            value=value,
            origin=self.origin,
            interval=interval(draws),
            standard_error=float(draws.std(ddof=1)),
            covariance={**covariance, "rho": float(draws.var(ddof=1))},
            draws=draws,
        )


def rho_column(name: str) -> str:
    """The name under which draws of a multiplier are kept."""
    return f"rho[{name}]"


def _draws_document(draws: Draws) -> dict[str, Any]:
    """Draws as text: single precision, little-endian, base64."""
    raw = draws.values.astype("<f4").tobytes()
    return {
        "names": list(draws.names),
        "count": len(draws),
        "seed": draws.seed,
        "discarded": draws.discarded,
        "float32": base64.b64encode(raw).decode("ascii"),
    }


def _read_draws(document: Mapping[str, Any]) -> Draws:
    names = tuple(document["names"])
    values = np.frombuffer(base64.b64decode(document["float32"], validate=True), dtype="<f4")
    return Draws(
        names,
        values.reshape(int(document["count"]), len(names)),
        int(document["seed"]),
        int(document["discarded"]),
    )


def _list(ends: tuple[float, float] | None) -> list[float] | None:
    return None if ends is None else list(ends)


def _text(value: float | str) -> float | str:
    """A value as JSON has it: `inf` is text."""
    return value if isinstance(value, str) or np.isfinite(value) else str(value)


def _read_columns(document: Mapping[str, Any], law: Law) -> dict[str, Features]:
    read = {column.name: column for column in law.reads}
    return {
        name: {column: read[column].read(value) for column, value in features.items()}
        for name, features in document.get("columns", {}).items()
    }


def _pair(ends: Any) -> tuple[float, float] | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _read(document: Mapping[str, Any]) -> Fit:
    certificate, law = document["certificate"], _read_law(document)
    return Fit(
        law=law,
        parameters={
            name: Estimate(float(value), document["standard_error"][name], _pair(document["interval"][name]))
            for name, value in document["parameters"].items()
        },
        rho={
            name: Estimate(float(entry["value"]), entry["standard_error"], _pair(entry["interval"]))
            for name, entry in document["rho"].items()
        },
        objective=float(document["objective"]),
        delta=float(document["delta"]),
        rms_log_error=float(document["rms_log_error"]),
        bic=float(document["bic"]),
        aicc=float("inf") if document.get("aicc") is None else float(document["aicc"]),
        num_runs=int(document["n_runs"]),
        num_parameters=int(document["n_parameters"]),
        outcome=Outcome(document["outcome"]),
        message=str(document["message"]),
        residuals=tuple(float(value) for value in document["residuals"]),
        unit_of_params=str(document["unit_of_params"]),
        data=str(document["data"]),
        range=Range(*((float(low), float(high)) for low, high in document["range"].values())),
        certificate=Certificate(
            alpha=tuple(certificate["alpha"]),
            beta=tuple(certificate["beta"]),
            objective=tuple(tuple(row) for row in certificate["objective"]),
            cells=int(certificate["cells"]),
            below_every_cell=bool(certificate["below_every_cell"]),
            starts=int(certificate["starts"]),
            agreeing=int(certificate["agreeing"]),
        ),
        draws=_read_draws(document["draws"]),
        residual_kind=str(document.get("residual_kind", "log")),
        backtest=Backtest.from_document(document["backtest"]) if document.get("backtest") else None,
        columns=_read_columns(document, law),
    )


def _read_law(document: Mapping[str, Any]) -> Law:
    if document.get("declaration"):
        return law_from_document(document["declaration"], str(document["law"]))
    conventions = dict(document["conventions"])
    ceiling = conventions.pop("free_ceiling", False)  # a convention once, a law of its own now
    return find_law("representation-ceiling" if ceiling else document["law"], conventions)


def _ships(law: Law) -> bool:
    return any(law.name == s.name and s.with_conventions(law.conventions) == law for s in LAWS)
