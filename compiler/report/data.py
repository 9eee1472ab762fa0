"""What a report is made from. Nothing is looked up: equal data give the same page, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...runtime.units import TEXT, Units
from ..plots.data import FormatRow, PredictionRow, RunRow, StoredPoint, representations
from ..plots.fitted import FittedLaw
from ..plots.frontier import Frontier
from ..plots.style import Style, styles


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Any part may be empty: the page then says what is missing and how to get it.

    question: what the sweep was run to find out, in the user's words.
    fit: a fit's document (`Fit.to_document()`), or None.
    environment: versions and hardware, nested mappings allowed. commands: what to type to get this again.
    notes: further remarks, shown as they are. frontier: the best sizes by budget, under the fit. selection:
    the document of a choice among laws. stored: packed models by bits and loss. units: of losses and budgets.
    """

    question: str = ""
    formats: tuple[FormatRow, ...] = ()
    runs: tuple[RunRow, ...] = ()
    fit: Mapping[str, Any] | None = None
    predictions: tuple[PredictionRow, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    frontier: Frontier | None = None
    selection: Mapping[str, Any] | None = None
    stored: tuple[StoredPoint, ...] = ()
    units: Units = TEXT

    @cached_property
    def law(self) -> FittedLaw | None:
        """The fitted law, ready to be asked."""
        return None if self.fit is None else FittedLaw.from_document(self.fit)

    @cached_property
    def look(self) -> dict[str, Style]:
        """One style per representation for all figures."""
        predicted = (row.representation for row in self.predictions)
        fitted = () if self.fit is None else (self.fit.get("rho") or ())
        return styles((*representations(self.formats, self.runs), *predicted, *fitted))
