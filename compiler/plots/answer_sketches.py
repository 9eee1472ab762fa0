"""Figures of answers, laid out: rank, search, plan, crossover, design, and the rules of composition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import FigureBase

from ...runtime.laws.composition import Evidence, Rule
from ...runtime.units import TEXT, Units
from ..questions.crossover import Crossover
from ..questions.optimum import Case
from ..questions.search import Search
from .composed import composed_data, draw_composed
from .crossing import crossing, draw_crossing
from .designed import design_data, draw_design
from .front import FRONT_COLOUR, GREY, WINNER_COLOUR, draw_front, front_data
from .frontier import Frontier, draw_frontier
from .legend import Entry, entry, legend_below, rows
from .ranking import draw_rank, rank_data
from .sketch import LEGEND_ROW, Sketch, grid
from .style import Style, styles

_ROW = 0.24  # inches


def rank_sketch(ranking: Mapping[str, Any]) -> Sketch:
    """A ranking's document."""
    data = rank_data(ranking)

    def draw(figure: FigureBase) -> None:
        draw_rank(figure.subplots(), data)

    given = sum(row.interval is not None for row in data.rows)
    key = "Whiskers are 95% intervals" if given else "The source gives no intervals"
    key += "." if given in (0, len(data.rows)) else ", where the source gives them."
    key += " Shaded: not told apart from the first." if data.tied else ""
    key += f" {data.hidden} more formats are worth less." if data.hidden else ""
    return Sketch(
        draw, "Formats by worth", "The further to the right, the more a format is worth.", key,
        height=0.9 + _ROW * len(data.rows),
    )  # fmt: skip


def search_sketch(found: Search) -> Sketch:
    """A search."""
    data = front_data(found)
    entries = [
        Entry("candidate", Style(GREY, "o")),
        Entry("at most, not measured", Style(GREY, "v")),
        Entry("the most for its bits", Style(FRONT_COLOUR, "s"), line=True),
        Entry("best", Style(WINNER_COLOUR, "*")),
    ]

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        draw_front(axes, data)
        legend_below(axes, entries)

    key = "Triangles: candidates whose bound on ρ was below the front already."
    whiskers = " Whiskers are 95% intervals." if any(point.interval for point in data.front) else ""
    return Sketch(
        draw,
        title="Composites by bits and rho",
        lead=f"The star keeps most in {data.most_bits:g} bits.",
        key=key + whiskers,
        height=4.6,
    )


def frontier_sketch(data: Frontier, look: Mapping[str, Style] | None = None, units: Units = TEXT) -> Sketch:
    """Compute-optimal training by format; `look` keeps the styles of other figures."""
    look = look or styles([line.name for line in data.lines])
    entries = [entry(line.name, look[line.name], line=True) for line in data.lines]

    def draw(figure: FigureBase) -> None:
        places = grid(figure, 2, shared=False)
        draw_frontier(places, data, look, units)
        legend_below(places[0], entries)

    key = {
        "Bands: 95% intervals of the draws, with the law's form taken as right.": any(
            line.loss.low for line in data.lines
        ),
        "Shaded: compute that the runs cover; the rest is an extrapolation.": data.data is not None,
        "Dashed: the budget that was asked for.": data.at is not None,
        f"Left out, for room: {', '.join(data.left_out)}.": bool(data.left_out),
    }
    return Sketch(
        draw,
        title="Compute-optimal loss and size by format",
        lead="The lower its line, the more a format makes of a budget; on the right, the size that does it.",
        key=" ".join(sentence for sentence, holds in key.items() if holds),
        height=3.5 + LEGEND_ROW * rows(entries),
        width=7.6,
    )


def crossover_sketch(found: Crossover, cases: Sequence[Case]) -> Sketch:
    """A crossover, or two losses that do not cross."""
    data = crossing(found, cases)
    look = styles(data.names)
    entries = [entry(name, look[name], line=True) for name in data.names]

    def draw(figure: FigureBase) -> None:
        places: Any = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        draw_crossing(list(places), data, look)
        legend_below(places[0], entries)

    bands = " Bands: 95% intervals, those of the difference from joint draws." if data.gap.low else ""
    where = " The vertical line is the crossover" if data.at is not None else ""
    where += ", its shade the 95% interval." if data.interval is not None else "." if where else ""
    return Sketch(
        draw,
        title=f"Loss of {data.names[0]} and {data.names[1]} against the budget",
        lead=f"{found.message}.",
        key=f"Below: {data.names[0]} minus {data.names[1]}; under 0 the first leads.{bands}{where}",
        height=5.0 + LEGEND_ROW,
    )


def design_sketch(design: Mapping[str, Any]) -> Sketch | None:
    """A design's document, or None where it has no single error."""
    data = design_data(design)
    if data is None:
        return None

    def draw(figure: FigureBase) -> None:
        draw_design(figure.subplots(), data)

    return Sketch(
        draw,
        title="Standard error before and after the runs of a design",
        lead="Each run, added to those above it, brings the error down to its dot.",
        key="Expected at the fitted law." + ("" if data.before else " The runs there are leave it open."),
        height=1.1 + 0.3 * (len(data.rows) + 1),
    )


def composed_sketch(rules: Sequence[Rule], evidence: Sequence[Evidence]) -> Sketch:
    """Rules of composition against tables, side by side."""
    found = [composed_data(rule, evidence) for rule in rules]
    look = {
        name: style for name, style in styles([table.name for table in evidence]).items() if name != "dense"
    }
    entries = [entry(name, style) for name, style in look.items()]

    def draw(figure: FigureBase) -> None:
        places = grid(figure, len(found))
        draw_composed(places, found, look)
        legend_below(places[0], entries)

    return Sketch(
        draw,
        title="Measured and composed rho of published composites",
        lead="On the dashed line a rule is right; above it, it promises too much.",
        key="Constants of a rule were learned from the other tables (arXiv 2506.01863 v1).",
        height=3.6 + LEGEND_ROW * rows(entries),
    )
