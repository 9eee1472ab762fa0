"""The sections of the page, in order. Each is None when its data are missing."""

from __future__ import annotations

from collections.abc import Callable

from ..plots.data import PredictionRow
from ..plots.text import decimals
from . import figures, tables
from .data import ReportData
from .fit_text import fitted_law
from .markup import Markup, element, join, paragraph, table, words
from .words import answer, many, missing, verdict

WORDS = {
    "format": "a way to store a weight in fewer bits; training rounds the weights to what can be stored",
    "N, D": "parameters of the model (embedding and output head left out) and {budget} it was trained on",
    "loss": "how badly the model does at its task{loss}; lower is better",
    "GMSE": "mean squared error of a format on Gaussian numbers of variance 1; known before any training",
    "Gaussian bits": "−½ log₂ GMSE: the bits at which the best possible code makes the same error",
    "ρ (rho)": "dense parameters that one parameter of a format is worth: N of them are as good as N·ρ",
    "held back": "left out of the fit on purpose, so that it can test it",
}

Section = Callable[[ReportData], Markup | None]


def question(data: ReportData) -> Markup:
    """The question and the answer in one sentence, then the words that the page uses."""
    units = {"budget": data.units.budget, "loss": data.units.loss_after_comma}
    meanings = {name: meaning.format(**units) for name, meaning in WORDS.items()}
    definitions = join(join([element("dt", name), element("dd", said)]) for name, said in meanings.items())
    listed = element("details", element("summary", "Words on this page"), element("dl", definitions))
    asked = data.question.strip() or "What is each format worth?"
    return join(
        [element("h1", asked), element("p", words(answer(data)), attributes={"class": "answer"}), listed]
    )


def formats(data: ReportData) -> Markup | None:
    """What each format costs and is worth."""
    if not data.formats:
        return None
    text = "What each format costs to store, how much error it makes, and what it turned out to be worth."
    stored = table(tables.representations_table(data), code=frozenset({1}))
    details = element("details", element("summary", "How each format stores a weight"), stored)
    return _section("Formats", paragraph(text), table(tables.formats_table(data)), details)


def sweep(data: ReportData) -> Markup | None:
    """The runs: curves, and a table to unfold."""
    if not data.runs:
        return None
    held = sum(run.held_out for run in data.runs)
    text = f"{many(len(data.runs), 'run')}, trained to the end"
    text += f"; {held} of them held back from the fit." if held else "."
    listed = element("details", element("summary", "Every run"), table(tables.runs_table(data)))
    curves = None if data.stored else figures.curves_figure(data)  # many formats, each of one size
    return _section("The sweep", paragraph(text), curves, listed)


def law(data: ReportData) -> Markup | None:
    """The fitted law: formula, parameters, outcome."""
    if data.fit is None:
        return None
    return _section("The fitted law", *fitted_law(data, data.fit))


def certainty(data: ReportData) -> Markup | None:
    """How well the runs determine the law."""
    shown = (
        figures.profile_figure(data),
        figures.parameters_figure(data),
        figures.multipliers_figure(data),
    )
    return _section("How sure the numbers are", *shown) if any(shown) else None


def frontier(data: ReportData) -> Markup | None:
    """The best size for every budget."""
    return _section_of("The best size for a budget", figures.frontier_figure(data))


def forecasts(data: ReportData) -> Markup | None:
    """How far ahead the law holds."""
    return _section_of("How far ahead the law holds", figures.forecasts_figure(data))


def selection(data: ReportData) -> Markup | None:
    """The choice among laws."""
    return _section_of("Which law", figures.selection_figure(data))


def capacity(data: ReportData) -> Markup | None:
    """rho against Gaussian error."""
    return _section_of("Worth against error", figures.capacity_figure(data))


def size(data: ReportData) -> Markup | None:
    """Loss against model size."""
    return None if data.stored else _section_of("Loss against model size", figures.size_figure(data))


def agreement(data: ReportData) -> Markup | None:
    """Predicted against measured."""
    return _section_of("Predicted against measured", figures.agreement_figure(data))


def stored(data: ReportData) -> Markup | None:
    """Quality against stored bits."""
    figure = figures.stored_figure(data)
    if figure is None:
        return None
    listed = element("details", element("summary", "Every format"), table(tables.stored_table(data)))
    return _section("Quality against stored bits", figure, listed)


def residuals(data: ReportData) -> Markup | None:
    """Residuals by format."""
    return _section_of("Residuals by format", figures.residuals_figure(data))


def predictions(data: ReportData) -> Markup | None:
    """The held-back combinations: prediction, interval, measurement, hit or miss in words."""
    if not data.predictions:
        return None
    text = (
        "Predicted from the other runs alone. The interval allows for the scatter of single runs, "
        "so 95 of 100 such runs should fall inside."
    )
    factors = tables.factors_table(data)
    told = element("ul", *(_told(row) for row in data.predictions))
    shown = [table(tables.predictions_table(data)), *([table(factors)] if factors.rows else [])]
    rules = figures.composed_figure(data)
    return _section("The held-back combination", paragraph(text), told, *shown, rules)


def _told(row: PredictionRow) -> Markup:
    """One prediction and what became of it, in words."""
    rule = f"ρ is the {row.rule}" if row.rule else "ρ was predicted"
    found = "not measured" if row.measured is None else f"measured {decimals(row.measured, 4)}"
    result = "" if row.measured is None else f"; {verdict(row)}"
    text = f": {rule}; predicted loss {decimals(row.predicted, 4)}, {found}{result}."
    return element("li", element("strong", row.representation), text)


def absent(data: ReportData) -> Markup | None:
    """What the page lacks and why."""
    reasons = missing(data)
    return (
        _section("Not on this page", element("ul", *(element("li", words(r)) for r in reasons)))
        if reasons
        else None
    )


def notes(data: ReportData) -> Markup | None:
    """The user's remarks."""
    return (
        _section("Notes", element("ul", *(element("li", note) for note in data.notes)))
        if data.notes
        else None
    )


def environment(data: ReportData) -> Markup | None:
    """Versions and hardware."""
    return _section("Environment", table(tables.environment_table(data))) if data.environment else None


def commands(data: ReportData) -> Markup | None:
    """How to get this page again."""
    if not data.commands:
        return None
    lines = element("pre", element("code", "\n".join(data.commands)), attributes={"tabindex": "0"})
    return _section(
        "Reproduce it", paragraph("Type this to get the same numbers on a machine like the one above:"), lines
    )


SECTIONS: tuple[Section, ...] = (
    *(question, stored, formats, sweep, law, certainty, selection, capacity, size, agreement, residuals),
    *(frontier, forecasts, predictions, absent, notes, environment, commands),
)


def _section(title: str, *parts: Markup | None) -> Markup:
    return element("section", element("h2", title), *(part for part in parts if part is not None))


def _section_of(title: str, figure: Markup | None) -> Markup | None:
    return None if figure is None else _section(title, figure)
