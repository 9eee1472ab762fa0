"""The fitted law as a reader meets it: formula, numbers in it, what came of the fit, and how well it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..plots.text import GREEK, count, significant
from . import tables
from .data import ReportData
from .markup import Markup, element, escape, join, paragraph, table
from .words import formula_with_numbers

OUTCOMES = {
    "converged": "The data pin the parameters down: numbers and intervals can be used.",
    "at_bound": "A parameter ended at the edge of its range: take its value as a limit.",
    "not_identified": "The data leave at least one parameter open: do not read its value on its own.",
    "not_converged": "The fit did not reach its optimum: use none of these numbers.",
    "too_few_runs": "There are too few runs for this many parameters: treat every number as a guess.",
}
"""What an outcome means for the reader of the numbers; the fit's own message says what to do."""


def fitted_law(data: ReportData, fit: Mapping[str, Any]) -> list[Markup]:
    """The parts of the section about the law."""
    formula = str(fit.get("formula") or "")
    parts = [
        _introduction(data, fit),
        _line(formula_markup(formula)),
        paragraph("With the fitted numbers:"),
        _line(formula_markup(formula_with_numbers(formula, fit["parameters"]))),
        _outcome(str(fit.get("outcome")), str(fit.get("message") or "")),
        table(tables.parameters_table(data)),
    ]
    multipliers = tables.multipliers_table(data)
    if multipliers.rows:
        parts += [paragraph("What one parameter of each format is worth in dense ones:"), table(multipliers)]
    return [*parts, element("p", _quality(fit))]


def formula_markup(text: str) -> Markup:
    """A formula with Greek letters, raised exponents and lowered indices."""
    shown: str = escape(text)
    for name, letter in GREEK.items():
        shown = re.sub(rf"(?<![A-Za-z]){name}(?![A-Za-z])", letter, shown)
    shown = re.sub(r"\^([−-]?[\w.]+)", r"<sup>\1</sup>", shown)
    shown = re.sub(r"_(\{[^}]*\}|\w+)", lambda match: f"<sub>{match[1].strip('{}')}</sub>", shown)
    return Markup(shown.replace("*", " · "))


def _line(formula: Markup) -> Markup:
    return element("p", formula, attributes={"class": "formula"})


def _introduction(data: ReportData, fit: Mapping[str, Any]) -> Markup:
    source = f" ({fit['source']})" if fit.get("source") else ""
    unit = fit.get("unit_of_params") or "parameters"
    loss = f"loss in {data.units.loss}" if data.units.loss else "loss"
    rest = f" law{source}. L: {loss}. N: {unit}. D: training {data.units.budget}."
    return element("p", "The ", element("code", str(fit["law"])), rest)


def _outcome(outcome: str, message: str) -> Markup:
    """The outcome, what it means for a reader, and the fit's own message, cut at its semicolons."""
    name = element("strong", f"Outcome: {outcome.replace('_', ' ')}.")
    headline = element("p", join([name, OUTCOMES.get(outcome, "")], " "))
    said = [_sentence(part) for part in message.split("; ") if part.strip()]
    listed = element("ul", *(element("li", part) for part in said)) if said else Markup()
    return element("div", headline, listed, attributes={"class": "outcome"})


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _quality(fit: Mapping[str, Any]) -> str:
    """How well the law does, for those numbers that the fit has."""
    error = fit.get("rms_log_error")
    said = {
        f"fitted to {count(fit.get('n_runs') or 0)} runs{_of(fit)}": fit.get("n_runs"),
        f"typical error {_percent(error)} of the loss (root mean square of log residuals)": error,
        f"objective {significant(fit.get('objective'))} (sum of Huber losses of log residuals)": fit.get(
            "objective"
        ),
        f"BIC {significant(fit.get('bic'), 5)} (lower is better among laws on the same runs)": fit.get("bic"),
    }
    text = "; ".join(words for words, value in said.items() if value is not None)
    return f"{text[:1].upper()}{text[1:]}."


def _percent(share: float | None) -> str:
    return "" if share is None else f"{significant(100 * share, 2)}%"


def _of(fit: Mapping[str, Any]) -> str:
    return f" ({fit['data']})" if fit.get("data") else ""
