"""The figures of the page: layout, legend and caption around what `plots` draws."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import FigureBase

from ...runtime.laws.composition import find_rule
from .. import plots
from ..composition import DEFAULT, evidence
from ..plots.answer_sketches import composed_sketch, frontier_sketch
from ..plots.capacity import PUBLISHED_C, PUBLISHED_F, PUBLISHED_SOURCE
from ..plots.fit_sketches import (
    forecasts_sketch,
    parameters_sketch,
    profile_sketch,
    rho_sketch,
    selection_sketch,
)
from ..plots.legend import Entry, entry, legend_below, rows
from ..plots.sketch import COLUMNS, LEGEND_ROW, Sketch, grid
from ..plots.stored import stored_sketch
from ..plots.svg import inline_svg
from .data import ReportData
from .markup import Markup, element, wide


def curves_figure(data: ReportData) -> Markup | None:
    """Loss while training, a panel per format."""
    panels = plots.loss_curves(data.runs)
    if not panels:
        return None
    lines = math.ceil(len(panels) / COLUMNS)

    def draw(figure: FigureBase) -> None:
        plots.draw_loss_curves(grid(figure, len(panels), lines), panels, data.look, data.units)

    lead = "Loss falls as training goes on, and how low it ends depends on format, size and "
    lead += f"{data.units.budget}."
    key = (
        "Lines: training loss, smoothed, thicker for larger models, without the first 5% of each run. "
        "Markers at their ends: validation loss."
    )
    return _figure("curves", Sketch(draw, "Loss curves by format", lead, key, height=0.7 + 1.9 * lines))


def size_figure(data: ReportData) -> Markup | None:
    """Loss against model size with the law's curves."""
    law = None if data.law is None else data.law.with_predicted(data.predictions)
    panels = plots.loss_by_size(data.runs, law, data.units)
    if not panels:
        return None
    shown = sum(panel.runs for panel in panels)
    seen = {name for panel in panels for name in panel.points}
    held = {name for panel in panels for name in panel.held_out}
    names = [name for name in data.look if name in seen | held]
    entries = [entry(n, data.look[n], held_out=n not in seen, line=law is not None) for n in names]

    def draw(figure: FigureBase) -> None:
        places = grid(figure, len(panels))
        plots.draw_loss_by_size(places, panels, data.look, data.units)
        legend_below(places[0], entries)

    lead = "At one budget larger models end lower; how far a format lies above dense is what it costs."
    key = {
        "Lines: the fitted law.": law is not None,
        "There are no lines, because no law has been fitted.": law is None,
        "Stars were held back from the fit.": bool(held),
        "A line is dashed where the law has not seen the format.": law is not None and bool(held - seen),
        f"Shown are the commonest budgets: {shown} of {len(data.runs)} runs.": shown < len(data.runs),
    }
    height = 3.5 + LEGEND_ROW * rows(entries)
    return _figure("size", Sketch(draw, "Loss against model size by format", lead, _true(key), height=height))


def capacity_figure(data: ReportData) -> Markup | None:
    """rho against Gaussian error with the published curve."""
    found = plots.capacity_points(data.formats, data.law)
    if not found.points:
        return None

    entries = [entry(point.name, data.look[point.name]) for point in found.points]
    entries.append(Entry("published, not fitted here", line=True, dashed=True))
    entries += [Entry("fitted here", line=True)] if found.fitted else []

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        plots.draw_capacity(axes, found, data.look)
        legend_below(axes, entries)

    lead = "The smaller the error of a format on Gaussian numbers, the more its parameters are worth."
    key = (
        "Whiskers are 95% intervals. The dashed line is published, not fitted here: "
        f"ρ = tanh({PUBLISHED_F} b)^{PUBLISHED_C} at b Gaussian bits ({PUBLISHED_SOURCE}). "
        "Dense has error 0, which is off the scale, and ρ = 1 by definition."
    )
    if found.two_errors:
        key += f" Left out, with errors in weights and inputs both: {', '.join(found.two_errors)}."
    height = 4.0 + LEGEND_ROW * rows(entries)
    return _figure("capacity", Sketch(draw, "rho against Gaussian error", lead, key, height=height))


def agreement_figure(data: ReportData) -> Markup | None:
    """Predicted against measured loss."""
    points = plots.agreement(data.runs, data.predictions, data.law)
    if not points:
        return None
    shown = dict.fromkeys((point.representation, point.held_out) for point in points)
    entries = [entry(name, data.look[name], held_out=held) for name, held in shown]

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        plots.draw_agreement(axes, points, data.look, data.units)
        legend_below(axes, entries)

    lead = "On the dashed line the law's loss equals the measured one; the closer, the better the law."
    stars = "Stars were predicted before they were trained; their bars, 95% intervals, should cross the line."
    height = 5.0 + LEGEND_ROW * rows(entries)
    title, key = "Loss by the law against measured loss", stars if any(held for _, held in shown) else ""
    return _figure("agreement", Sketch(draw, title, lead, key, height))


def residuals_figure(data: ReportData) -> Markup | None:
    """Residuals by format."""
    lines = plots.residual_rows(plots.agreement(data.runs, data.predictions, data.law))
    if not lines:
        return None

    def draw(figure: FigureBase) -> None:
        plots.draw_residuals(figure.subplots(), lines, data.look)

    lead = "Every row should scatter around zero; a row to one side is a format that the law gets wrong."
    stars = "Stars were held back from the fit." if any(row.held_out for row in lines) else ""
    return _figure(
        "residuals", Sketch(draw, "Residuals by format", lead, stars, height=0.8 + 0.38 * len(lines))
    )


def profile_figure(data: ReportData) -> Markup | None:
    """The profile map of the fit."""
    return None if data.fit is None else _figure("profile", profile_sketch(data.fit))


def parameters_figure(data: ReportData) -> Markup | None:
    """Parameters with intervals."""
    return None if data.fit is None else _figure("parameters", parameters_sketch(data.fit))


def multipliers_figure(data: ReportData) -> Markup | None:
    """rho by format with intervals."""
    return None if data.fit is None else _figure("multipliers", rho_sketch(data.fit, data.look))


def frontier_figure(data: ReportData) -> Markup | None:
    """The best size and its loss by format."""
    return (
        None
        if data.frontier is None
        else _figure("frontier", frontier_sketch(data.frontier, data.look, data.units))
    )


def forecasts_figure(data: ReportData) -> Markup | None:
    """Errors of forecasts inside the data."""
    return None if data.fit is None else _figure("forecasts", forecasts_sketch(data.fit))


def selection_figure(data: ReportData) -> Markup | None:
    """Laws by the error of their forecasts."""
    return None if data.selection is None else _figure("selection", selection_sketch(data.selection))


def stored_figure(data: ReportData) -> Markup | None:
    """Loss of packed models against stored bits."""
    return _figure("stored", stored_sketch(data.stored))


def composed_figure(data: ReportData) -> Markup | None:
    """How far off rules of composition were on published composites, where a prediction is composed."""
    if not any(len(row.factors) > 1 for row in data.predictions):
        return None
    return _figure("composed", composed_sketch([find_rule("product"), find_rule(DEFAULT)], evidence()))


def _true(sentences: Mapping[str, bool]) -> str:
    return " ".join(sentence for sentence, holds in sentences.items() if holds)


def _figure(ident: str, sketch: Sketch | None) -> Markup | None:
    """A figure with a caption, or None for none: what to see, then what the marks mean."""
    if sketch is None:
        return None
    svg = inline_svg(sketch.draw, ident=ident, title=sketch.title, width=sketch.width, height=sketch.height)
    caption = element("figcaption", element("strong", sketch.lead), " ", sketch.key)
    return element("figure", wide(Markup(svg), sketch.title), caption)
