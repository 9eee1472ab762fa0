"""The tables of a report, as plain rows: the page and the terminal show the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.units import TEXT
from ..plots.data import FormatRow, Interval, RunRow, StoredPoint
from ..plots.fitted import FittedLaw, interval_of
from ..plots.text import count, decimals, interval, significant
from .data import ReportData
from .words import symbol, verdict

_KINDS = {"as it is": "as it is", "trained": "trained", "scratch": "from scratch"}

Cell = str | int | float | Interval | None


@dataclass(frozen=True)
class Column:
    """A heading with its unit. places: decimals of its fractions; None shows four significant digits."""

    heading: str
    unit: str = ""
    places: int | None = None

    def show(self, cell: Cell) -> str:
        """A cell as text."""
        if cell is None or isinstance(cell, str):
            return cell or ""
        if isinstance(cell, tuple):
            return self._ends(cell)
        if isinstance(cell, int):
            return count(cell)
        return significant(cell) if self.places is None else decimals(cell, self.places)

    def round(self, cell: Cell) -> str | int | float | None:
        """A cell for a table that sets numbers by itself: rounded as `show` would, intervals as text."""
        if isinstance(cell, tuple):
            return self.show(cell)
        if not isinstance(cell, float):
            return cell
        return float(f"{cell:.4g}") if self.places is None else round(cell, self.places)

    def _ends(self, cell: Interval) -> str:
        if self.places is not None:
            return interval(cell, self.places)
        return f"{significant(cell[0])} to {significant(cell[1])}"


@dataclass(frozen=True)
class Table:
    """Rows under columns. Cells are text, counts (int), numbers (float), intervals (two floats) or None."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings with units in brackets."""
        return tuple(f"{c.heading} ({c.unit})" if c.unit else c.heading for c in self.columns)

    @property
    def text_rows(self) -> tuple[tuple[str, ...], ...]:
        """Every cell as text."""
        return tuple(
            tuple(c.show(cell) for c, cell in zip(self.columns, row, strict=True)) for row in self.rows
        )

    @property
    def terminal_rows(self) -> tuple[tuple[str | int | float | None, ...], ...]:
        """Rows for a terminal's table: numbers stay numbers, rounded as shown; intervals are text."""
        return tuple(
            tuple(c.round(cell) for c, cell in zip(self.columns, row, strict=True)) for row in self.rows
        )

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers, intervals or nothing, and so is set flush right."""
        return not any(isinstance(row[column], str) for row in self.rows)


def tables(data: ReportData) -> tuple[Table, ...]:
    """The tables that `rhoc report` prints, without those that would be empty."""
    every = (
        *(formats_table(data), stored_table(data), parameters_table(data), multipliers_table(data)),
        predictions_table(data),
    )
    return tuple(table for table in every if table.rows)


def formats_table(data: ReportData) -> Table:
    """Formats with what they cost and what they are worth."""
    columns = (
        Column("format"),
        Column("what it is"),
        Column("stored", "bits per weight", 3),
        Column("GMSE of weights"),
        Column("GMSE of inputs"),
        Column("Gaussian bits", places=3),
        Column("ρ", places=3),
        Column("95% interval", places=3),
    )
    return Table("Formats", columns, tuple(_format_row(row, data.law) for row in data.formats))


def _format_row(row: FormatRow, law: FittedLaw | None) -> tuple[Cell, ...]:
    rho, ends = row.rho, row.rho_interval
    if rho is None and law is not None:
        rho, ends = law.rho.get(row.name), law.rho_interval.get(row.name)
    costs = (row.name, row.summary, row.bits_per_weight, row.gmse, row.gmse_input or 0.0, row.gaussian_bits)
    return (*costs, rho, ends)


def representations_table(data: ReportData) -> Table:
    """How each format stores a weight, as text."""
    columns = (Column("format"), Column("weights, from dense tensor to stored bits"))
    return Table("Stored as", columns, tuple((row.name, row.representation) for row in data.formats))


def runs_table(data: ReportData) -> Table:
    """Every run."""
    columns = (
        Column("run"),
        Column("format"),
        Column("N", "parameters"),
        Column("D", data.units.budget),
        Column("loss", data.units.loss, 4),
        Column("seed"),
        Column("time", "s", 1),
        Column("part"),
    )
    ordered = sorted(data.runs, key=lambda r: (r.representation, r.params, r.tokens, r.seed or 0, r.id))
    rows = (
        (*(r.id[:8], r.representation, r.params, r.tokens, r.loss, r.seed, r.seconds), _part(r))
        for r in ordered
    )
    return Table("Runs", columns, tuple(rows))


def _part(run: RunRow) -> str:
    return "held back" if run.held_out else "fit"


def parameters_table(data: ReportData) -> Table:
    """The law's parameters with intervals and meaning."""
    columns = (
        Column("parameter"),
        Column("meaning"),
        Column("value"),
        Column("standard error"),
        Column("95% interval"),
        Column("unit"),
    )
    fit = data.fit or {}
    errors, ends = fit.get("standard_error") or {}, fit.get("interval") or {}
    rows = []
    declared = {} if data.law is None else {p.name: p for p in data.law.law.parameters}
    for name, value in (fit.get("parameters") or {}).items():
        known = declared.get(name)
        meaning, unit = (known.meaning, _unit(known.unit, data)) if known else ("", "")
        rows.append(
            (
                symbol(name),
                meaning,
                number(value),
                number(errors.get(name)),
                interval_of(ends.get(name)),
                unit,
            )
        )
    return Table("Fitted parameters", columns, tuple(rows))


def _unit(declared: str, data: ReportData) -> str:
    """The unit of a law's parameter, with the loss of these runs in the place of that of text."""
    return declared.replace(TEXT.loss, data.units.loss or "that of the loss") or "none"


def multipliers_table(data: ReportData) -> Table:
    """rho of every representation in the fit."""
    columns = (
        Column("format"),
        Column("ρ", "dense parameters per parameter", 3),
        Column("standard error", places=3),
        Column("95% interval", places=3),
    )
    entries: Mapping[str, Mapping[str, Any]] = (data.fit or {}).get("rho") or {}
    rows = (
        (
            name,
            number(entry["value"]),
            number(entry.get("standard_error")),
            interval_of(entry.get("interval")),
        )
        for name, entry in sorted(entries.items(), key=lambda item: -item[1]["value"])
    )
    return Table("Fitted multipliers", columns, tuple(rows))


def predictions_table(data: ReportData) -> Table:
    """Predictions beside measurements, in words too."""
    columns = (
        Column("combination"),
        Column("N", "parameters"),
        Column("D", data.units.budget),
        Column("predicted", data.units.loss, 4),
        Column("95% interval", data.units.loss, 4),
        Column("measured", data.units.loss, 4),
        Column("result"),
    )
    rows = (
        (r.representation, r.params, r.tokens, r.predicted, r.interval, r.measured, verdict(r))
        for r in data.predictions
    )
    return Table("Predicted and measured loss", columns, tuple(rows))


def factors_table(data: ReportData) -> Table:
    """What the rho of each predicted combination was made from, and what came out."""
    columns = (
        Column("combination"),
        Column("ρ of"),
        Column("ρ", places=3),
        Column("95% interval", places=3),
    )
    rows: dict[tuple[Cell, ...], None] = {}
    for row in data.predictions:
        for factor in row.factors:
            rows[row.representation, factor.representation, factor.rho, factor.interval] = None
        if row.rho is not None:
            rows[row.representation, row.rule or "the combination", row.rho, row.rho_interval] = None
    return Table("Multipliers of the predictions", columns, tuple(rows))


def stored_table(data: ReportData) -> Table:
    """Packed models by stored bits: the loss of each as it is, trained in the format, and so from scratch."""
    columns = (
        Column("format"),
        Column("stored", "bits per weight", 3),
        *(Column(f"loss, {how}", places=4) for how in _KINDS.values()),
        *(Column(f"std over seeds, {how}", places=4) for how in _KINDS.values()),
    )
    found: dict[tuple[str, float], dict[str, StoredPoint]] = {}
    for point in data.stored:
        found.setdefault((point.name, point.bits), {}).setdefault(point.how, point)
    rows = []
    for (name, bits), kinds in sorted(found.items(), key=lambda item: item[0][1]):
        points = [kinds.get(how) for how in _KINDS]
        losses = (None if point is None else point.loss for point in points)
        rows.append((name, bits, *losses, *(None if point is None else point.spread for point in points)))
    return Table("Packed models", columns, tuple(rows))


def environment_table(data: ReportData) -> Table:
    """Versions and hardware, nested names joined by dots."""
    return Table("Environment", (Column("what"), Column("value")), tuple(_flat(data.environment)))


def number(value: Any) -> float | None:
    """A number of a JSON document, where null stands for one that is not finite."""
    return None if value is None else float(value)


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
