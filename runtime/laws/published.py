"""Multipliers and laws from papers, as data with their sources. Reading files is the compiler's business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RequestError
from . import find_law
from .base import Features
from .formula import names_in, parse
from .multiplier import Multiplier, Origin
from .objective import Residual
from .representation import rho_of_gmse
from .result import Range
from .runs import Array

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Published:
    """A published number, with its standard deviation where the source gives one."""

    value: float
    standard_deviation: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % under a normal distribution; None where the source gives no spread."""
        if self.standard_deviation is None:
            return None
        half = _NORMAL_95 * self.standard_deviation
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Family:
    """Constants of rho = L tanh(F log_{1/4} GMSE)^C for one compression family, and how they were found."""

    slope: Published
    curvature: Published
    ceiling: float
    how: str

    def rho(self, gmse: float) -> float:
        """The multiplier of an error in this family."""
        return float(rho_of_gmse(gmse, self.slope.value, self.curvature.value, self.ceiling))

    def log_slopes(self, gmse: float) -> Array:
        """Derivatives of log rho with respect to F and C, [2]."""
        if gmse == 0:
            return np.zeros(2)
        bits = -np.log(gmse) / np.log(4.0)
        angle = self.slope.value * bits
        return np.array([self.curvature.value * 2 * bits / np.sinh(2 * angle), np.log(np.tanh(angle))])

    @property
    def spread(self) -> Array:
        """Standard deviations of F and C, [2]; not a number where none is given."""
        given = (self.slope.standard_deviation, self.curvature.standard_deviation)
        return np.array([np.nan if value is None else value for value in given])


@dataclass(frozen=True)
class Table:
    """A heat map of multipliers: one representation per row, another per column, both together in the cell.

    baseline: the row and the column in which nothing is compressed; least_standard_deviation: what a printed
    .00 stands for.
    """

    rows: str
    row_values: tuple[float, ...]
    columns: str
    column_values: tuple[float, ...]
    baseline: tuple[float, float]
    values: tuple[tuple[float, ...], ...]
    standard_deviations: tuple[tuple[float, ...], ...] | None = None
    least_standard_deviation: float = 0.0

    def cell(self, row: float, column: float) -> Published:
        """The multiplier at a row and a column. Raises ValueError where the table has none."""
        i, j = self.row_values.index(row), self.column_values.index(column)
        spread = self.standard_deviations
        return Published(
            self.values[i][j], None if spread is None else max(spread[i][j], self.least_standard_deviation)
        )

    def product_errors(self) -> Array:
        """|measured - product of the margins| of every cell, [rows, columns]."""
        values = np.array(self.values)
        row, column = self.row_values.index(self.baseline[0]), self.column_values.index(self.baseline[1])
        return np.asarray(np.abs(values - np.outer(values[:, column], values[row])))


@dataclass(frozen=True)
class Match:
    """What a published fit says of a shipped spec, whether the format is the same, and how it compares."""

    multiplier: Published
    exact: bool
    how: str


@dataclass(frozen=True)
class PublishedObjective:
    """What a published fit made small: Huber losses of residuals, and the value it printed.

    delta: where they turn linear, infinite for squares; value: the sum over `runs` runs, None where it is not
    printed.
    """

    residuals: Residual = Residual.LOG
    delta: float = 1e-3
    value: float | None = None
    runs: int | None = None


@dataclass(frozen=True)
class PublishedFit:
    """One published fit: constants and multipliers with the law, units and data they belong to.

    parameters: under the names of the law; also: what the source prints in other terms, in its own names.
    multipliers: by kind ("rho" of N, "rho_D" of D), then by the name that runs use. objective: None where the
    source does not say. reading: how the numbers were read ("paper", "code", "secondary", "computed").
    covariance was published by nobody so far, so there is none here.
    """

    name: str
    title: str
    arxiv: str
    where: str
    reading: str
    law: str
    formula: str
    parameters: Mapping[str, Published]
    unit_of_params: str
    data: str
    unit_of_tokens: str = "training tokens"
    objective: PublishedObjective | None = None
    also: Mapping[str, Published] = field(default_factory=dict)
    multipliers: Mapping[str, Mapping[str, Published]] = field(default_factory=dict)
    range: Range | None = None
    families: Mapping[str, Family] = field(default_factory=dict)
    entries: Mapping[str, Published] = field(default_factory=dict)
    table: Table | None = None
    specs: Mapping[str, Match] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> Origin:
        """What every multiplier of this fit carries."""
        return Origin(self.name, self.law, self.values, self.unit_of_params, self.data)

    @property
    def values(self) -> dict[str, float]:
        """Parameters by name."""
        return {name: published.value for name, published in self.parameters.items()}

    @property
    def rho(self) -> dict[str, Published]:
        """Multipliers of N by the name that runs use, and by shipped spec."""
        specs = {name: match.multiplier for name, match in self.specs.items()}
        return {**specs, **self.multipliers.get("rho", {})}

    @property
    def rho_data(self) -> Mapping[str, Published]:
        """Multipliers of D by the name that runs give the backward pass."""
        return self.multipliers.get("rho_D", {})

    @property
    def missing(self) -> tuple[str, ...]:
        """Parameters in the formula of its law that the source does not give."""
        law = find_law(self.law)
        used = {name.name for name in names_in(parse(law.formula))} & {p.name for p in law.parameters}
        given = {name.partition("[")[0] for name in self.parameters}
        return tuple(p.name for p in law.parameters if p.name in used - given)

    @property
    def source(self) -> dict[str, Any]:
        """Where the numbers are from, as plain JSON."""
        return self.origin.to_document() | {
            "title": self.title,
            "arxiv": self.arxiv,
            "where": self.where,
            "reading": self.reading,
            "formula": self.formula,
            "covariance": "not published",
        }

    def spec_multiplier(self, spec: str) -> Multiplier:
        """The multiplier that this fit has for a shipped spec. Raises RequestError when it has none."""
        if spec not in self.specs:
            raise RequestError(
                f"{self.name} has no entry for {spec!r}",
                advice=f"it has: {', '.join(self.specs) or 'none; ask by GMSE'}",
            )
        match = self.specs[spec]
        found = match.multiplier
        kind = "same format" if match.exact else "near, not the same format"
        return Multiplier(
            name=spec,
            value=found.value,
            origin=self.origin,
            interval=found.interval,
            standard_error=found.standard_deviation,
            note=f"{kind}: {match.how}",
        )

    def family_multiplier(self, name: str, parts: Sequence[tuple[str, float]]) -> Multiplier:
        """The product over parts (family, GMSE) of rho by this fit's constants.

        Raises RequestError for a family it has no constants of.
        """
        missing = [family for family, _ in parts if family not in self.families]
        if missing:
            raise RequestError(
                f"{self.name} has no constants for the {missing[0]} family, which {name!r} needs",
                advice=f"it has: {', '.join(self.families) or 'none'}",
            )
        value = float(np.prod([self.families[family].rho(gmse) for family, gmse in parts]))
        spread = value * self._log_spread(parts)
        error = spread if np.isfinite(spread) else None
        return Multiplier(
            name=name,
            value=value,
            origin=self.origin,
            interval=Published(value, error).interval,
            standard_error=error,
            composed_of=tuple(f"{family} GMSE {gmse:.4g}" for family, gmse in parts)
            if len(parts) > 1
            else (),
            note="; ".join(
                f"{family}: {self.families[family].how}"
                for family in dict.fromkeys(family for family, _ in parts)
            ),
        )

    def _log_spread(self, parts: Sequence[tuple[str, float]]) -> float:
        """Standard deviation of log rho; F and C are independent, and the same in every part of a family."""
        slopes = {family: np.zeros(2) for family, _ in parts}
        for family, gmse in parts:
            slopes[family] += self.families[family].log_slopes(gmse)
        return float(np.sqrt(sum(np.square(s * self.families[f].spread).sum() for f, s in slopes.items())))

    def loss(
        self, params: float, tokens: float, rho: float, features: Features | None = None
    ) -> tuple[float | None, str]:
        """Loss by its law at N, D, a multiplier and the law's columns, or None with the reason why not."""
        if self.missing:
            absent = ", ".join(self.missing)
            return None, f"{self.name} does not publish {absent}, so it gives effective parameters alone"
        law = find_law(self.law)
        needed = [c.name for c in law.columns if c.default is None and c.name not in (features or {})]
        asked = {name.name for name in names_in(parse(law.formula))}.intersection(needed)
        if asked:
            return None, f"{self.name} needs {', '.join(c for c in needed if c in asked)} to tell a loss"
        return float(law.loss(self.values, params, tokens, rho, features)), ""


def read_published(document: Mapping[str, Any], where: str) -> PublishedFit:
    """A published fit from its YAML document. Raises RequestError, at `where`, for a malformed one."""
    try:
        table = _table(document["table"]) if "table" in document else None
        entries = {name: _number(value) for name, value in document.get("entries", {}).items()}
        matches = {name: _match(entry, entries, table) for name, entry in document.get("specs", {}).items()}
        return PublishedFit(
            name=document["name"],
            title=document["title"],
            arxiv=document["arxiv"],
            where=document["where"],
            reading=document["reading"],
            law=document["law"],
            formula=document["formula"],
            parameters={name: _number(value) for name, value in document["parameters"].items()},
            unit_of_params=document["unit_of_params"],
            data=document["data"],
            unit_of_tokens=document.get("unit_of_tokens", "training tokens"),
            objective=_objective(document["objective"]) if "objective" in document else None,
            also={name: _number(value) for name, value in document.get("also", {}).items()},
            multipliers={
                kind: {name: entries[entry] for name, entry in named.items()}
                for kind, named in document.get("multipliers", {}).items()
            },
            range=_range(document["range"]) if "range" in document else None,
            families={name: _family(value) for name, value in document.get("families", {}).items()},
            entries=entries,
            table=table,
            specs=matches,
            notes=tuple(document.get("notes", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"not a published fit ({type(error).__name__}: {error})", where=where) from error


def _number(value: Any) -> Published:
    """A bare number, or [value, standard deviation]."""
    if isinstance(value, list):
        return Published(float(value[0]), float(value[1]))
    return Published(float(value))


def _objective(document: Mapping[str, Any]) -> PublishedObjective:
    value, runs, delta = (document.get(key) for key in ("value", "runs", "delta"))
    if value is not None and document["of"] == "mean":
        value = value * runs
    return PublishedObjective(
        residuals=Residual(document["residual"]),
        delta=np.inf if delta is None else float(delta),
        value=value,
        runs=runs,
    )


def _family(document: Mapping[str, Any]) -> Family:
    return Family(_number(document["F"]), _number(document["C"]), float(document["L"]), document["how"])


def _range(document: Mapping[str, Sequence[float]]) -> Range:
    ends = [
        (float(low), float(high))
        for low, high in (document[k] for k in ("params", "tokens", "tokens_per_param"))
    ]
    return Range(*ends)


def _rows(values: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(cell) for cell in row) for row in values)


def _table(document: Mapping[str, Any]) -> Table:
    table = Table(
        rows=document["rows"],
        row_values=tuple(float(value) for value in document["row_values"]),
        columns=document["columns"],
        column_values=tuple(float(value) for value in document["column_values"]),
        baseline=(float(document["baseline"][0]), float(document["baseline"][1])),
        values=_rows(document["values"]),
        standard_deviations=_rows(document["standard_deviations"])
        if "standard_deviations" in document
        else None,
        least_standard_deviation=float(document.get("least_standard_deviation", 0.0)),
    )
    if {len(row) for row in table.values} != {len(table.column_values)} or len(table.values) != len(
        table.row_values
    ):
        raise ValueError("the table is not as large as its row_values and column_values say")
    return table


def _match(document: Mapping[str, Any], entries: Mapping[str, Published], table: Table | None) -> Match:
    if "entry" in document:
        found = entries[document["entry"]]
    elif table is not None:
        found = table.cell(*(float(value) for value in document["cell"]))
    else:
        raise ValueError("a match names an entry, or a cell of a table")
    if document["match"] not in ("exact", "near"):
        raise ValueError(f"match is {document['match']!r}, not exact or near")
    return Match(found, document["match"] == "exact", document["how"])
