"""The figures of the page: layout, legend and caption around what `plots` draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import plots
from ..plots.capacity import PUBLISHED_C, PUBLISHED_F, PUBLISHED_SOURCE
from ..plots.legend import Entry, entry, legend_below, rows
from ..plots.svg import Draw, inline_svg
from .data import ReportData
from .markup import Markup, element, wide

_COLUMNS = 3
_LEGEND_ROW = 0.22  # inches


def curves_figure(data: ReportData) -> Markup | None:
    """Loss while training, a panel per format."""
    panels = plots.loss_curves(data.runs)
    if not panels:
        return None
    lines = math.ceil(len(panels) / _COLUMNS)

    def draw(figure: Figure) -> None:
        plots.draw_loss_curves(_grid(figure, len(panels), lines), panels, data.look)

    lead = "Loss falls as training goes on, and how low it ends depends on format, size and tokens."
    key = (
        "Lines: training loss, smoothed, thicker for larger models, without the first 5% of each run. "
        "Markers at their ends: validation loss."
    )
    return _figure(draw, "curves", "Loss curves by format", lead, key, height=0.7 + 1.9 * lines)


def size_figure(data: ReportData) -> Markup | None:
    """Loss against model size with the law's curves."""
    law = None if data.law is None else data.law.with_predicted(data.predictions)
    panels = plots.loss_by_size(data.runs, law)
    if not panels:
        return None
    shown = sum(panel.runs for panel in panels)
    seen = {name for panel in panels for name in panel.points}
    held = {name for panel in panels for name in panel.held_out}
    names = [name for name in data.look if name in seen | held]
    entries = [entry(n, data.look[n], held_out=n not in seen, line=law is not None) for n in names]

    def draw(figure: Figure) -> None:
        places = _grid(figure, len(panels), 1)
        plots.draw_loss_by_size(places, panels, data.look)
        legend_below(places[0], entries)

    lead = "At one budget larger models end lower; how far a format lies above dense is what it costs."
    key = {
        "Lines: the fitted law.": law is not None,
        "There are no lines, because no law has been fitted.": law is None,
        "Stars were held back from the fit.": bool(held),
        "A line is dashed where the law has not seen the format.": law is not None and bool(held - seen),
        f"Shown are the commonest budgets: {shown} of {len(data.runs)} runs.": shown < len(data.runs),
    }
    height = 3.5 + _LEGEND_ROW * rows(entries)
    return _figure(draw, "size", "Loss against model size by format", lead, _true(key), height=height)


def capacity_figure(data: ReportData) -> Markup | None:
    """rho against Gaussian error with the published curve."""
    found = plots.capacity_points(data.formats, data.law)
    if not found.points:
        return None

    entries = [entry(point.name, data.look[point.name]) for point in found.points]
    entries.append(Entry("published, not fitted here", line=True, dashed=True))
    entries += [Entry("fitted here", line=True)] if found.fitted else []

    def draw(figure: Figure) -> None:
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
    height = 4.0 + _LEGEND_ROW * rows(entries)
    return _figure(draw, "capacity", "rho against Gaussian error", lead, key, height=height)


def agreement_figure(data: ReportData) -> Markup | None:
    """Predicted against measured loss."""
    points = plots.agreement(data.runs, data.predictions, data.law)
    if not points:
        return None
    shown = dict.fromkeys((point.representation, point.held_out) for point in points)
    entries = [entry(name, data.look[name], held_out=held) for name, held in shown]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        plots.draw_agreement(axes, points, data.look)
        legend_below(axes, entries)

    lead = "On the dashed line the law's loss equals the measured one; the closer, the better the law."
    stars = "Stars were predicted before they were trained; their bars, 95% intervals, should cross the line."
    height = 5.0 + _LEGEND_ROW * rows(entries)
    title, key = "Loss by the law against measured loss", stars if any(held for _, held in shown) else ""
    return _figure(draw, "agreement", title, lead, key, height=height)


def residuals_figure(data: ReportData) -> Markup | None:
    """Residuals by format."""
    lines = plots.residual_rows(plots.agreement(data.runs, data.predictions, data.law))
    if not lines:
        return None

    def draw(figure: Figure) -> None:
        plots.draw_residuals(figure.subplots(), lines, data.look)

    lead = "Every row should scatter around zero; a row to one side is a format that the law gets wrong."
    stars = "Stars were held back from the fit." if any(row.held_out for row in lines) else ""
    return _figure(draw, "residuals", "Residuals by format", lead, stars, height=0.8 + 0.38 * len(lines))


def _grid(figure: Figure, count: int, lines: int) -> Sequence[Axes]:
    """`count` axes in lines that share both scales."""
    grid = figure.subplots(lines, min(count, _COLUMNS), sharex=True, sharey=True, squeeze=False)
    places: list[Axes] = list(grid.flat)
    for place in places[count:]:
        place.remove()
    return places[:count]


def _true(sentences: Mapping[str, bool]) -> str:
    return " ".join(sentence for sentence, holds in sentences.items() if holds)


def _figure(draw: Draw, ident: str, title: str, lead: str, key: str, *, height: float) -> Markup:
    """A figure with a caption: what to see, then what the marks mean."""
    svg = Markup(inline_svg(draw, ident=ident, title=title, height=height))
    caption = element("figcaption", element("strong", lead), " ", key)
    return element("figure", wide(svg, title), caption)
